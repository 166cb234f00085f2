use super::*;

fn set(key: &str, value: &str) -> Result<String, SettingError> {
    let mut settings = Settings::default();
    settings.set(key, value)?;
    settings.get(key)
}

#[test]
fn every_key_is_there_once_and_starts_at_its_default() {
    let settings = Settings::default();
    for (number, option) in Settings::OPTIONS.iter().enumerate() {
        assert_eq!(position(option.key), Ok(number), "{}", option.key);
        assert_eq!(settings.get(option.key), Ok(option.default_text()));
        assert!(option.help.ends_with('.'), "{}", option.key);
        assert_eq!(
            option.unit.is_empty(),
            option.kind != SettingKind::Integer,
            "{}",
            option.key
        );
    }
}

#[test]
fn integers_are_taken_at_their_limits_and_refused_past_them() {
    let integers = Settings::OPTIONS
        .iter()
        .filter(|option| option.kind == SettingKind::Integer);
    for option in integers {
        for good in [option.minimum, option.maximum, option.default] {
            assert_eq!(set(option.key, &good.to_string()), Ok(good.to_string()));
        }
        let past = (option.maximum + 1).to_string();
        let mut bad = vec![past, "-1".to_owned(), "".to_owned(), "1x".to_owned()];
        bad.extend(option.minimum.checked_sub(1).map(|below| below.to_string()));
        for bad in bad {
            let error = set(option.key, &bad).unwrap_err().to_string();
            let expected = format!(
                "{}: expected a whole number from {} to {} ({}), found {bad:?}",
                option.key, option.minimum, option.maximum, option.unit
            );
            assert_eq!(error, expected);
        }
    }
}

#[test]
fn an_error_changes_nothing() {
    let mut settings = Settings::default();
    settings.set(WORKERS, "7").unwrap();
    let before = settings.clone();
    assert!(settings.set(WORKERS, "1000").is_err());
    assert!(settings.set("engine.none", "1").is_err());
    assert_eq!(settings, before);
}

#[test]
fn lists_are_names_between_commas() {
    assert_eq!(set(TASKS, "vpn, botnet"), Ok("vpn,botnet".to_owned()));
    assert_eq!(set(TASKS, " "), Ok(String::new()));
    for bad in ["vpn,", ",", "a,,b"] {
        let error = set(TASKS, bad).unwrap_err().to_string();
        let expected = "engine.tasks: expected names with commas between them, found";
        assert_eq!(error, format!("{expected} {bad:?}"));
    }
    let longest = "a".repeat(SETTING_BYTES_MAX);
    assert_eq!(set(TASKS, &longest).as_ref(), Ok(&longest));
    assert_eq!(
        set(TASKS, &(longest + "a")),
        Err(SettingError::TooLong {
            key: TASKS,
            limit_bytes: SETTING_BYTES_MAX,
            found_bytes: SETTING_BYTES_MAX + 1
        })
    );
}

#[test]
fn a_level_is_named_as_the_kernels_name_it() {
    for level in Level::ALL {
        assert_eq!(set(CPU, level.name()), Ok(level.name().to_owned()));
    }
    assert!(matches!(
        set(CPU, "AVX2"),
        Err(SettingError::Level { key: CPU, .. })
    ));
    let mut settings = Settings::default();
    settings.set(CPU, "portable").unwrap();
    assert_eq!(settings.level().unwrap(), Level::Portable);
    settings.set(CPU, "").unwrap();
    assert!(settings.level().is_ok());
}

#[test]
fn a_device_is_a_word_or_a_number() {
    for good in ["", "cpu", "auto", "cuda", "cuda:0", "cuda:63"] {
        assert_eq!(set(DEVICE, good), Ok(good.to_owned()));
    }
    for bad in ["cuda:64", "gpu", "portable"] {
        let error = set(DEVICE, bad).unwrap_err().to_string();
        let expected = "engine.device: expected nothing or cpu, auto, cuda or cuda:N with N from 0 to 63, found";
        assert_eq!(error, format!("{expected} {bad:?}"));
    }
    let error = set(DEVICE_ACTIVATIONS, "int4").unwrap_err().to_string();
    let expected = "engine.device_activations: expected nothing or int8 or bf16, found \"int4\"";
    assert_eq!(error, expected);
    let mut settings = Settings::default();
    let none = settings.device_options();
    assert_eq!(none.choice, DeviceChoice::Cpu);
    assert_eq!(none.activations, DeviceActivations::Int8);
    assert_eq!(none.memory_bytes_max, 0);
    for (key, value) in [
        (DEVICE, "cuda:3"),
        (DEVICE_MEMORY, "1000"),
        (DEVICE_ACTIVATIONS, "bf16"),
    ] {
        settings.set(key, value).unwrap();
    }
    let options = settings.device_options();
    assert_eq!(options.choice, DeviceChoice::Cuda(3));
    assert_eq!(options.activations, DeviceActivations::Bf16);
    assert_eq!(options.memory_bytes_max, 1_000);
}

#[test]
fn a_level_of_another_processor_is_no_level_here() {
    let elsewhere = Level::ALL
        .into_iter()
        .find(|level| level.available().is_err());
    let Some(level) = elsewhere else { return };
    let mut settings = Settings::default();
    settings.set(CPU, level.name()).unwrap();
    assert!(matches!(settings.level(), Err(Error::Level(_))));
}

#[test]
fn an_unknown_key_is_told_what_was_meant() {
    let nearest = |key: &str| match set(key, "1") {
        Err(SettingError::UnknownKey { nearest, .. }) => nearest,
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(nearest("engine.worker"), WORKERS);
    assert_eq!(nearest("engine.Workers"), WORKERS);
    assert_eq!(nearest("deadline_us"), DEADLINE);
    assert_eq!(nearest("capture.max_flow"), CAPTURE_FLOWS);
    let error = set(&"x".repeat(10_000), "1").unwrap_err();
    assert!(error.to_string().len() < 200);
}

/// A text other than the default one.
#[cfg(feature = "default-bundle")]
fn word_of(key: &str) -> &'static str {
    match key {
        DEVICE => "auto",
        DEVICE_ACTIVATIONS => "bf16",
        _ => "portable",
    }
}

#[cfg(feature = "default-bundle")]
#[test]
fn options_are_what_was_set() {
    let model = Model::load(&Model::default_bundle().unwrap(), Level::detect()).unwrap();
    let mut settings = Settings::default();
    assert_eq!(settings.flow_config(&model), model.flow_config());
    for (number, option) in Settings::OPTIONS.iter().enumerate() {
        let value = match option.kind {
            SettingKind::Integer => (option.minimum.max(1) * 64 + number as u64)
                .min(option.maximum)
                .to_string(),
            SettingKind::List => "vpn,botnet".to_owned(),
            SettingKind::Text => word_of(option.key).to_owned(),
        };
        settings.set(option.key, &value).unwrap();
    }
    assert_eq!(
        Settings::default().engine_options(&model).batch_tokens,
        0,
        "a device's default is another"
    );
    let options = settings.engine_options(&model);
    let number = |key: &str| settings.get(key).unwrap().parse::<u64>().unwrap();
    assert_eq!(options.workers as u64, number(WORKERS));
    assert_eq!(options.tasks, ["vpn", "botnet"]);
    assert_eq!(options.batch_tokens as u64, number(BATCH_TOKENS));
    assert_eq!(options.queue_flows as u64, number(QUEUE_FLOWS));
    assert_eq!(options.batch_wait_us, number(BATCH_WAIT));
    assert_eq!(options.deadline_us, number(DEADLINE));
    let expected = FlowConfig {
        max_flows: number(CAPTURE_FLOWS) as usize,
        max_packets: number(MAX_PACKETS) as usize,
        max_payload_bytes: number(MAX_PAYLOAD_BYTES) as usize,
        max_payloads: number(MAX_PAYLOADS) as usize,
        tcp_idle_timeout_us: number(TCP_IDLE),
        other_idle_timeout_us: number(OTHER_IDLE),
        active_timeout_us: number(ACTIVE),
        closed_timeout_us: number(CLOSED),
    };
    assert_eq!(options.flows, Some(expected));
    assert_eq!(options.device.choice, DeviceChoice::Auto);
    assert_eq!(options.device.memory_bytes_max, number(DEVICE_MEMORY));
    assert_eq!(expected.validate(), Ok(()));
    assert_eq!(settings.memory_bytes_max() as u64, number(MEMORY));
    assert_eq!(
        settings.stop_timeout().as_micros() as u64,
        number(STOP_TIMEOUT)
    );
    assert_eq!(settings.flows_max() as u64, number(FLOW_HANDLES));
    assert_eq!(settings.min_packets(), number(MIN_PACKETS));
}

#[test]
fn whatever_is_set_the_flow_settings_are_sound() {
    let bounds: [fn(&SettingInfo) -> u64; 2] = [|option| option.minimum, |option| option.maximum];
    for bound in bounds {
        let mut settings = Settings::default();
        for option in Settings::OPTIONS {
            if option.kind == SettingKind::Integer {
                settings
                    .set(option.key, &bound(option).to_string())
                    .unwrap();
            }
        }
        let config = settings.flow_config_over(FlowConfig::default());
        assert_eq!(config.validate(), Ok(()));
    }
}
