use std::os::unix::fs::PermissionsExt;

use super::*;

const KEY: Key = [7; 32];
const OTHER: Key = [8; 32];

fn cache(folder: &Path) -> Cache {
    Cache::with_limit(folder.to_owned(), 10_000).expect("a usable folder")
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
}

#[test]
fn what_was_stored_is_loaded_and_nothing_else() {
    let folder = tempfile::tempdir().expect("folder");
    let cache = cache(&folder.path().join("made/here"));
    assert_eq!(cache.load(&KEY), None);
    cache.store(&KEY, b"code");
    assert_eq!(cache.load(&KEY).as_deref(), Some(&b"code"[..]));
    assert_eq!(cache.load(&OTHER), None);
    // Another process finds it, and what is stored again replaces it.
    let again = self::cache(&folder.path().join("made/here"));
    assert_eq!(again.load(&KEY).as_deref(), Some(&b"code"[..]));
    again.store(&KEY, b"");
    assert_eq!(cache.load(&KEY).as_deref(), Some(&b""[..]));
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!(mode(&cache.folder), 0o700);
    assert_eq!(mode(&cache.path(&KEY)), 0o600);
    assert_eq!(fs::read_dir(&cache.folder).expect("folder").count(), 1);
}

#[test]
fn files_that_are_cut_changed_or_of_another_key_are_not_loaded() {
    let folder = tempfile::tempdir().expect("folder");
    let cache = cache(folder.path());
    cache.store(&KEY, b"the code of a kernel");
    let path = cache.path(&KEY);
    let whole = fs::read(&path).expect("file");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("write");
        assert_eq!(cache.load(&KEY), None, "cut to {length}");
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).expect("write");
        assert_eq!(cache.load(&KEY), None, "changed at {at}");
    }
    fs::write(&path, [&whole[..], b"x"].concat()).expect("write");
    assert_eq!(cache.load(&KEY), None, "longer");
    fs::write(cache.path(&OTHER), &whole).expect("write");
    assert_eq!(cache.load(&OTHER), None, "of another key");
    // A bad one is replaced.
    cache.store(&KEY, b"new");
    assert_eq!(cache.load(&KEY).as_deref(), Some(&b"new"[..]));
}

#[test]
fn files_and_folders_that_others_may_write_to_are_not_used() {
    let folder = tempfile::tempdir().expect("folder");
    let cache = cache(folder.path());
    cache.store(&KEY, b"code");
    for mode in [0o620, 0o602, 0o666] {
        set_mode(&cache.path(&KEY), mode);
        assert_eq!(cache.load(&KEY), None, "{mode:o}");
    }
    set_mode(&cache.path(&KEY), 0o644);
    assert!(cache.load(&KEY).is_some());
    for mode in [0o770, 0o702, 0o777, 0o1777] {
        set_mode(folder.path(), mode);
        let opened = Cache::open(&ImageCache::Folder(folder.path().to_owned()));
        assert!(opened.is_none(), "{mode:o}");
    }
    set_mode(folder.path(), 0o755);
    assert!(Cache::open(&ImageCache::Folder(folder.path().to_owned())).is_some());
}

#[test]
fn folders_and_files_of_other_users_are_not_used() {
    use std::os::unix::fs::{MetadataExt, chown};
    let folder = tempfile::tempdir().expect("folder");
    let cache = cache(folder.path());
    cache.store(&KEY, b"code");
    let own = fs::metadata(folder.path()).expect("metadata").uid();
    if chown(cache.path(&KEY), Some(own + 1), None).is_err() {
        println!("skipped: only root can give files away");
        return;
    }
    assert_eq!(cache.load(&KEY), None);
    chown(folder.path(), Some(own + 1), None).expect("as before");
    assert!(Cache::open(&ImageCache::Folder(folder.path().to_owned())).is_none());
}

#[test]
fn a_folder_that_cannot_be_used_is_none_and_harms_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("file");
    fs::write(&file, "text").expect("write");
    assert!(Cache::open(&ImageCache::None).is_none());
    assert!(Cache::open(&ImageCache::Folder(file.clone())).is_none());
    assert!(Cache::open(&ImageCache::Folder(file.join("below"))).is_none());
    assert!(Cache::open(&ImageCache::Folder(PathBuf::new())).is_none());
    // One that goes away, and one where something else has the name of an image.
    let cache = cache(&folder.path().join("gone"));
    fs::create_dir(cache.path(&OTHER)).expect("folder");
    cache.store(&OTHER, b"code");
    assert_eq!(cache.load(&OTHER), None);
    fs::remove_dir_all(&cache.folder).expect("remove");
    cache.store(&KEY, b"code");
    assert_eq!(cache.load(&KEY), None);
}

#[test]
fn links_to_files_elsewhere_are_not_followed() {
    let folder = tempfile::tempdir().expect("folder");
    let cache = cache(&folder.path().join("cache"));
    cache.store(&KEY, b"code");
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(cache.path(&KEY), &elsewhere).expect("rename");
    std::os::unix::fs::symlink(&elsewhere, cache.path(&KEY)).expect("link");
    assert_eq!(cache.load(&KEY), None);
}

#[test]
fn the_oldest_go_first_when_the_limit_is_passed() {
    let folder = tempfile::tempdir().expect("folder");
    let image = [0; 100 - HEADER_BYTES];
    let cache = Cache::with_limit(folder.path().to_owned(), 300).expect("folder");
    let age = |key: &Key, seconds| {
        let file = File::open(cache.path(key)).expect("file");
        let time = SystemTime::now() - Duration::from_secs(seconds);
        file.set_modified(time).expect("time");
    };
    let held = || {
        (1..=4)
            .map(|key| cache.path(&[key; 32]).exists())
            .collect::<Vec<_>>()
    };
    for key in 1..=3 {
        cache.store(&[key; 32], &image);
        age(&[key; 32], 100 - u64::from(key));
    }
    // The limit itself is allowed, and what is none of its files is neither counted nor removed.
    fs::write(folder.path().join("note"), [0; 1000]).expect("write");
    assert_eq!(held(), [true, true, true, false]);
    // The first is used, so that the second is the oldest when one has to go.
    assert!(cache.load(&[1; 32]).is_some());
    cache.store(&[4; 32], &image);
    assert_eq!(held(), [true, false, true, true]);
    assert!(folder.path().join("note").exists());
    // What is larger than all is not kept, and removes nothing; what is as large removes all else.
    cache.store(&[2; 32], &[0; 301 - HEADER_BYTES]);
    assert_eq!(held(), [true, false, true, true]);
    cache.store(&[2; 32], &[0; 300 - HEADER_BYTES]);
    assert_eq!(held(), [false, true, false, false]);
}

#[test]
fn what_was_left_unfinished_is_removed_after_its_time() {
    let folder = tempfile::tempdir().expect("folder");
    let cache = cache(folder.path());
    let (old, new) = (
        folder.path().join("1-0.unfinished"),
        folder.path().join("2-0.unfinished"),
    );
    for path in [&old, &new] {
        fs::write(path, "half").expect("write");
    }
    let past = SystemTime::now() - UNFINISHED_MAX - Duration::from_secs(1);
    File::open(&old)
        .expect("file")
        .set_modified(past)
        .expect("time");
    cache.store(&KEY, b"code");
    assert!(!old.exists());
    assert!(new.exists());
}

#[test]
fn the_users_folder_is_where_the_rules_say() {
    let folder = |cache: Option<&str>, home: Option<&str>| {
        user_folder(cache.map(OsString::from), home.map(OsString::from))
    };
    let expected = |path: &str| Some(PathBuf::from(path));
    assert_eq!(
        folder(Some("/c"), Some("/h")),
        expected("/c/trafficllm/kernels")
    );
    assert_eq!(
        folder(None, Some("/h")),
        expected("/h/.cache/trafficllm/kernels")
    );
    assert_eq!(
        folder(Some("c"), Some("/h")),
        expected("/h/.cache/trafficllm/kernels")
    );
    assert_eq!(folder(Some(""), Some("")), None);
    assert_eq!(folder(None, None), None);
}
