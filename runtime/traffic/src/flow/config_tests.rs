use super::*;
use crate::flow::FlowTable;

#[test]
fn settings_are_held_to_their_limits() {
    let good = FlowConfig::default();
    let at = |config: FlowConfig| config.validate().map_err(|error| error.field);
    assert_eq!(at(good), Ok(()));
    assert_eq!(
        at(FlowConfig {
            max_flows: FLOWS_MAX,
            ..good
        }),
        Ok(())
    );
    assert_eq!(
        at(FlowConfig {
            max_flows: FLOWS_MAX + 1,
            ..good
        }),
        Err("max_flows")
    );
    assert_eq!(
        at(FlowConfig {
            max_flows: 0,
            ..good
        }),
        Err("max_flows")
    );
    assert_eq!(
        at(FlowConfig {
            max_packets: FLOW_PACKETS_MAX,
            ..good
        }),
        Ok(())
    );
    assert_eq!(
        at(FlowConfig {
            max_packets: FLOW_PACKETS_MAX + 1,
            ..good
        }),
        Err("max_packets")
    );
    assert_eq!(
        at(FlowConfig {
            max_packets: 0,
            ..good
        }),
        Err("max_packets")
    );
    assert_eq!(
        at(FlowConfig {
            max_payload_bytes: PACKET_PAYLOAD_BYTES_MAX,
            ..good
        }),
        Ok(())
    );
    assert_eq!(
        at(FlowConfig {
            max_payload_bytes: PACKET_PAYLOAD_BYTES_MAX + 1,
            ..good
        }),
        Err("max_payload_bytes")
    );
    for (max_payloads, expected) in [
        (0, Ok(())),
        (FLOW_PACKETS_MAX, Ok(())),
        (FLOW_PACKETS_MAX + 1, Err("max_payloads")),
    ] {
        let config = FlowConfig {
            max_payloads,
            ..good
        };
        assert_eq!(at(config), expected);
    }
    let timeouts = |timeout_us| FlowConfig {
        tcp_idle_timeout_us: timeout_us,
        other_idle_timeout_us: timeout_us,
        active_timeout_us: timeout_us,
        closed_timeout_us: timeout_us,
        ..good
    };
    assert_eq!(at(timeouts(TIMEOUT_US_MIN)), Ok(()));
    assert_eq!(at(timeouts(TIMEOUT_US_MAX)), Ok(()));
    assert_eq!(at(timeouts(TIMEOUT_US_MIN - 1)), Err("tcp_idle_timeout_us"));
    assert_eq!(
        at(FlowConfig {
            other_idle_timeout_us: TIMEOUT_US_MAX + 1,
            ..good
        }),
        Err("other_idle_timeout_us")
    );
    assert_eq!(
        at(FlowConfig {
            active_timeout_us: TIMEOUT_US_MAX + 1,
            ..good
        }),
        Err("active_timeout_us")
    );
    assert_eq!(
        at(FlowConfig {
            closed_timeout_us: 0,
            ..good
        }),
        Err("closed_timeout_us")
    );
    let error = FlowTable::new(FlowConfig {
        max_flows: 0,
        ..good
    })
    .map(|_| ())
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("flow setting max_flows: expected 1..={FLOWS_MAX}, found 0")
    );
}

#[test]
fn a_hundred_thousand_flows_of_the_default_settings_fit_into_their_share() {
    let config = FlowConfig::default();
    assert!(config.max_flows >= 100_000);
    // The documentation says so; of the 256 MiB that all of `detect` may take, allocator, model and scratch need the rest.
    #[cfg(target_pointer_width = "64")]
    assert!(config.flow_bytes_max() <= 2_104);
    let with_one_more = FlowConfig {
        max_packets: config.max_packets + 1,
        max_payloads: config.max_payloads + 1,
        ..config
    };
    let more = with_one_more.flow_bytes_max() - config.flow_bytes_max();
    assert_eq!(more, 12 + 16 + 400);
}
