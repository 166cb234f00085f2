//! Where the page goes: an older page stays whole until the new one is.

use std::fs::{self, File, Metadata};
use std::io::{self, Write, stdout};
use std::path::{Path, PathBuf};

/// Names that are tried for the file beside the page; others of this process's number can be left from one that was killed.
const NAMES_TRIED: u32 = 16;

/// Whether both are one file on disk, by whatever names; `-` is standard input for `input` and standard output for `output`. Terminals,
/// pipes and devices are no files on disk: nothing is lost there.
pub(super) fn is_same_file(input: &Path, output: &Path) -> bool {
    let both = standard(input, Standard::Input).zip(standard(output, Standard::Output));
    both.is_some_and(|(input, output)| is_one_file(&input, &output))
}

#[derive(Clone, Copy)]
enum Standard {
    Input,
    Output,
}

/// A file that exists: what is known of it, and its path if it has one here.
type Found = (Metadata, Option<PathBuf>);

fn standard(path: &Path, standard: Standard) -> Option<Found> {
    if path.as_os_str() == "-" {
        return Some((of_standard(standard)?, None));
    }
    Some((fs::metadata(path).ok()?, path.canonicalize().ok()))
}

#[cfg(unix)]
fn of_standard(standard: Standard) -> Option<Metadata> {
    use std::os::fd::AsFd;
    let owned = match standard {
        Standard::Input => io::stdin().as_fd().try_clone_to_owned(),
        Standard::Output => stdout().as_fd().try_clone_to_owned(),
    };
    File::from(owned.ok()?).metadata().ok()
}

#[cfg(not(unix))]
fn of_standard(_: Standard) -> Option<Metadata> {
    None
}

/// By device and inode: a hard link is the same file by another path.
#[cfg(unix)]
fn is_one_file(one: &Found, other: &Found) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |found: &Found| (found.0.dev(), found.0.ino());
    one.0.is_file() && identity(one) == identity(other)
}

#[cfg(not(unix))]
fn is_one_file(one: &Found, other: &Found) -> bool {
    one.0.is_file() && one.1.is_some() && one.1 == other.1
}

/// Writes the page; `-` is standard output. What is no file on disk is written to directly.
///
/// # Errors
/// Whatever the system says. A file that was there before is then as it was.
pub(super) fn write(path: &Path, page: &[u8]) -> io::Result<()> {
    if path.as_os_str() == "-" {
        let mut out = stdout().lock();
        return out.write_all(page).and_then(|()| out.flush());
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            replace(path, None, |file| file.write_all(page))
        }
        Err(error) => Err(error),
        // A link stays a link to the page; one that leads nowhere, or to a device or a pipe, is written through.
        Ok(_) => match (fs::metadata(path), path.canonicalize()) {
            (Ok(old), Ok(target)) if old.is_file() => {
                replace(&target, Some(&old), |file| file.write_all(page))
            }
            _ => fs::write(path, page),
        },
    }
}

/// Fills a file beside `path` and gives it that name once it is whole, with the permissions of the old one.
fn replace(
    path: &Path,
    old: Option<&Metadata>,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let (aside, mut file) = beside(path)?;
    let done = fill(&mut file)
        .and_then(|()| old.map_or(Ok(()), |old| file.set_permissions(old.permissions())))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&aside, path));
    if done.is_err() {
        // The first error is the one to tell.
        let _left = fs::remove_file(&aside);
    }
    done
}

/// A new file in the folder of `path`. Its name does not hold that of `path`, which can be as long as names may be.
fn beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut number = 0;
    loop {
        let name = format!(".trafficllm-report-{}-{number}", std::process::id());
        let aside = path.with_file_name(name);
        match File::create_new(&aside) {
            Ok(file) => return Ok((aside, file)),
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && number + 1 < NAMES_TRIED =>
            {
                number += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_page_that_fails_halfway_leaves_the_old_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.html");
        write(&path, b"old").unwrap();
        let old = fs::metadata(&path).unwrap();
        let failed = replace(&path, Some(&old), |file| {
            file.write_all(b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["page.html"]);
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["page.html"]);
    }

    #[test]
    fn names_left_behind_are_passed_over_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.html");
        for _ in 1..NAMES_TRIED {
            beside(&path).unwrap();
        }
        write(&path, b"page").unwrap();
        beside(&path).unwrap();
        let refused = write(&path, b"other").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"page");
    }

    #[cfg(unix)]
    #[test]
    fn links_and_permissions_outlive_a_new_page() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write(&at("page"), b"old").unwrap();
        fs::set_permissions(at("page"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("page", at("link")).unwrap();
        fs::hard_link(at("page"), at("kept")).unwrap();
        write(&at("link"), b"new").unwrap();
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(fs::read(at("page")).unwrap(), b"new");
        assert_eq!(
            fs::read(at("kept")).unwrap(),
            b"old",
            "the old page was never written to"
        );
        let mode = fs::metadata(at("page")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        symlink("later", at("ahead")).unwrap();
        write(&at("ahead"), b"page").unwrap();
        assert_eq!(fs::read(at("later")).unwrap(), b"page");
    }

    #[cfg(unix)]
    #[test]
    fn one_file_is_known_by_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("one"), "x").unwrap();
        fs::write(at("two"), "x").unwrap();
        fs::hard_link(at("one"), at("hard")).unwrap();
        std::os::unix::fs::symlink("one", at("soft")).unwrap();
        for name in ["one", "hard", "soft"] {
            assert!(is_same_file(&at("one"), &at(name)), "{name}");
        }
        for name in ["two", "none"] {
            assert!(!is_same_file(&at("one"), &at(name)), "{name}");
        }
        let device = Path::new("/dev/null");
        assert!(!is_same_file(device, device));
    }
}
