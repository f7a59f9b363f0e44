"""Reads a block with DuckDB and with pyarrow; prints as JSON what each finds in it."""

import collections
import json
import sys

import duckdb
import pyarrow.compute
import pyarrow.parquet

path = sys.argv[1]


def by_duckdb():
    def ask(select):
        return duckdb.execute(f"SELECT {select}", [path]).fetchall()

    rows, traces, duration, events = ask(
        "count(*), count(DISTINCT trace_id), sum(duration_nano)::BIGINT, sum(len(events))::BIGINT FROM read_parquet(?)"
    )[0]
    services = ask("service_name, count(*) FROM read_parquet(?) GROUP BY 1")
    errors = ask(
        'count(*) FROM read_parquet(?) WHERE "span.http.response.status_code" >= 500 AND status_code = 2'
    )[0][0]
    first = ask("min(trace_start_unix_nano + start_offset_nano)::BIGINT FROM read_parquet(?)")[0][0]
    # An attribute without a column, and one of an event.
    rare = ask(
        "a.string FROM (SELECT unnest(attributes) AS a FROM read_parquet(?)) WHERE a.key = 'rare' ORDER BY 1"
    )
    exceptions = ask(
        "count(*) FROM (SELECT unnest(events) AS e FROM read_parquet(?))"
        " WHERE e.name = 'exception' AND e.attributes[1].string = 'Timeout'"
    )[0][0]
    # A parent that stands only in its own row.
    children = ask(
        "count(*) FROM read_parquet(?) c WHERE parent_span_id IS NULL AND nested_parent > 0"
    )[0][0]
    return {
        "rows": rows,
        "traces": traces,
        "duration": duration,
        "events": events,
        "services": dict(services),
        "errors": errors,
        "first": first,
        "rare": [value for (value,) in rare],
        "exceptions": exceptions,
        "children": children,
    }


def by_pyarrow():
    table = pyarrow.parquet.read_table(path)
    compute = pyarrow.compute
    starts = compute.add(table["trace_start_unix_nano"], table["start_offset_nano"])
    failed = compute.and_(
        compute.greater_equal(table["span.http.response.status_code"], 500), compute.equal(table["status_code"], 2)
    )
    attributes = [attribute for row in table["attributes"].to_pylist() for attribute in row]
    events = [event for row in table["events"].to_pylist() for event in row]
    derived = compute.and_(compute.is_null(table["parent_span_id"]), compute.greater(table["nested_parent"], 0))
    return {
        "rows": table.num_rows,
        "traces": len(compute.unique(table["trace_id"])),
        "duration": compute.sum(table["duration_nano"]).as_py(),
        "events": len(events),
        "services": dict(collections.Counter(table["service_name"].to_pylist())),
        "errors": compute.sum(failed).as_py() or 0,
        "first": compute.min(starts).as_py(),
        "rare": sorted(attribute["string"] for attribute in attributes if attribute["key"] == "rare"),
        "exceptions": sum(
            event["name"] == "exception" and event["attributes"][0]["string"] == "Timeout" for event in events
        ),
        "children": compute.sum(derived).as_py() or 0,
    }


print(json.dumps({"duckdb": by_duckdb(), "pyarrow": by_pyarrow()}))
