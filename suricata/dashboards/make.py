#!/usr/bin/env python3
"""Writes kibana.ndjson: saved objects over EVE records with the plugin's object. Run it after a change here; no libraries needed."""

import json
import pathlib

PATTERN = "trafficllm-eve"
OBJECTS = [
    {
        "type": "index-pattern",
        "id": PATTERN,
        "attributes": {"title": "suricata-*", "name": "Suricata EVE", "timeFieldName": "timestamp"},
        "references": [],
    }
]


def visualization(name, title, kind, query, aggregations, parameters):
    source = {
        "query": {"query": query, "language": "kuery"},
        "filter": [],
        "indexRefName": "kibanaSavedObjectMeta.searchSourceJSON.index",
    }
    OBJECTS.append(
        {
            "type": "visualization",
            "id": f"trafficllm-{name}",
            "attributes": {
                "title": f"trafficllm: {title}",
                "description": "",
                "uiStateJSON": "{}",
                "visState": json.dumps({"title": title, "type": kind, "aggs": aggregations, "params": parameters}),
                "kibanaSavedObjectMeta": {"searchSourceJSON": json.dumps(source)},
            },
            "references": [
                {"id": PATTERN, "name": "kibanaSavedObjectMeta.searchSourceJSON.index", "type": "index-pattern"}
            ],
        }
    )


def aggregation(number, kind, schema, **parameters):
    return {"id": str(number), "enabled": True, "type": kind, "schema": schema, "params": parameters}


COUNT = aggregation(1, "count", "metric")
TIME = aggregation(2, "date_histogram", "segment", field="timestamp", interval="auto", min_doc_count=1)


def terms(number, field, size=12, schema="group"):
    return aggregation(number, "terms", schema, field=field, size=size, order="desc", orderBy="1")


HISTOGRAM = {"type": "histogram", "addLegend": True, "legendPosition": "right", "addTooltip": True, "mode": "stacked"}
TABLE = {"perPage": 20, "showTotal": False}
FLOWS = "event_type:flow and trafficllm.state:done"

visualization("labels", "labels of flows", "histogram", FLOWS, [COUNT, TIME, terms(3, "trafficllm.labels.keyword")], HISTOGRAM)
visualization("states", "states of flows", "histogram", "event_type:flow and trafficllm.state:*", [COUNT, TIME, terms(3, "trafficllm.state.keyword")], HISTOGRAM)
visualization(
    "hosts",
    "hosts by label",
    "table",
    FLOWS,
    [COUNT, terms(2, "src_ip.keyword", 25, "bucket"), terms(3, "trafficllm.labels.keyword", 5, "bucket")],
    TABLE,
)
visualization(
    "botnet-scores",
    "scores of botnet labels",
    "histogram",
    f"{FLOWS} and not trafficllm.botnet_detection_label:normal",
    [
        COUNT,
        aggregation(2, "histogram", "segment", field="trafficllm.botnet_detection_score", interval=0.05, min_doc_count=0),
        terms(3, "trafficllm.botnet_detection_label.keyword"),
    ],
    HISTOGRAM,
)
visualization(
    "latency",
    "latency in microseconds",
    "line",
    FLOWS,
    [aggregation(1, "percentiles", "metric", field="trafficllm.latency_us", percents=[50, 99]), TIME],
    {"type": "line", "addLegend": True, "legendPosition": "right", "addTooltip": True},
)
visualization(
    "alerts",
    "alerts with verdicts",
    "table",
    "event_type:alert and trafficllm.state:done",
    [COUNT, terms(2, "alert.signature.keyword", 20, "bucket"), terms(3, "src_ip.keyword", 5, "bucket")],
    TABLE,
)

places = [("labels", 0, 0), ("states", 24, 0), ("hosts", 0, 15), ("alerts", 24, 15), ("botnet-scores", 0, 30), ("latency", 24, 30)]
panels = [
    {
        "panelIndex": name,
        "gridData": {"x": x, "y": y, "w": 24, "h": 15, "i": name},
        "embeddableConfig": {},
        "type": "visualization",
        "panelRefName": f"panel_{name}",
    }
    for name, x, y in places
]
OBJECTS.append(
    {
        "type": "dashboard",
        "id": "trafficllm",
        "attributes": {
            "title": "trafficllm in Suricata",
            "description": "Verdicts of libtrafficllm on Suricata's flows",
            "panelsJSON": json.dumps(panels),
            "optionsJSON": json.dumps({"useMargins": True}),
            "timeRestore": False,
            "kibanaSavedObjectMeta": {"searchSourceJSON": json.dumps({"query": {"query": "", "language": "kuery"}, "filter": []})},
        },
        "references": [
            {"id": f"trafficllm-{name}", "name": f"{name}:panel_{name}", "type": "visualization"} for name, _, _ in places
        ],
    }
)

text = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in OBJECTS)
pathlib.Path(__file__).with_name("kibana.ndjson").write_text(text)
