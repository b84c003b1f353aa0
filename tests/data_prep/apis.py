"""What the query APIs of Jaeger and Prometheus answer, to be written into files."""

import gzip
import json

T0 = 1_657_623_180  # 2022-07-12T10:53:00Z, unix seconds
NS = 1_000_000_000


def tags(values):
    types = {bool: "bool", int: "int64", str: "string"}
    return [{"key": key, "type": types[type(value)], "value": value} for key, value in values.items()]


def span(trace, number, process, start, duration, parent=None, operation="GET", ref="CHILD_OF", **values):
    """`start` in seconds after T0, `duration` in milliseconds; `values`: the tags, `_` for `.`."""
    return {
        "traceID": trace, "spanID": number, "flags": 1, "operationName": operation, "processID": process,
        "references": [{"refType": ref, "traceID": trace, "spanID": parent}] if parent else [],
        "startTime": round((T0 + start) * 1e6), "duration": round(duration * 1000),
        "tags": tags({key.replace("_", ".") if key != "status_code" else key: v for key, v in values.items()}),
        "logs": [{"timestamp": 1, "fields": tags({"event": "started"})}], "warnings": None,
    }  # fmt: skip


def process(service, **values):
    return {"serviceName": service, "tags": tags({key.replace("_", "."): value for key, value in values.items()})}


def trace(spans, processes, number=None):
    return {"traceID": number or spans[0]["traceID"], "spans": spans, "processes": processes, "warnings": None}


def traces(*found):
    return {"data": list(found), "total": 0, "limit": 0, "offset": 0, "errors": None}


def series(values, **labels):
    """`values`: (seconds after T0, value) each; the API writes values as texts."""
    return {"metric": labels, "values": [[T0 + second, str(value)] for second, value in values]}


def matrix(*found):
    return {"status": "success", "data": {"resultType": "matrix", "result": list(found)}}


def write(path, content):
    """Writes text as it is and everything else as JSON, compressed where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text, encoding="utf-8")
    return path
