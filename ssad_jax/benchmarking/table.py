"""A benchmark's JSON object as a table for people."""


def describe(results: dict) -> str:
    r = results
    lines = [
        f"{r['device']}, jax {r['versions']['jax']}: N = {r['nodes']}, E = {r['edges']}, "
        f"{r['batch_size']} x {r['sequence_length']} windows a step, hidden {r['hidden_dim']}, {r['precision']}, "
        f"{r['propagation']} propagation; medians of {r['rounds']} rounds by turns",
        "",
        f"{'':34}{'train':>12}{'score':>12}{'one window':>16}",
        f"{'':34}{'windows/s':>12}{'windows/s':>12}{'p50 / p99 ms':>16}",
        _row("ssad_jax", r),
    ]
    for name, peer in r.get("peers", {}).items():
        lines.append(_row(name, peer))
        if peer["train_ratio"] is not None:
            lines.append(
                f"{'    ssad_jax is so many times faster':34}{peer['train_ratio']:>11.2f}x{peer['score_ratio']:>11.2f}x"
                f"{peer['stream_ratio']:>15.2f}x"
            )
        for what, tuned in peer["variants"].items():
            lines.append(f"    fastest of {len(tuned['seconds'])} for {what}: {tuned['best']}")
            lines += [f"    not run for {what}: {name} ({why})" for name, why in tuned["failed"].items()]
    lines += [
        "",
        _compilation(r),
        f"a window: {r['flop_per_window'] / 1e6:.0f} MFLOP, {r['bytes_per_window'] / 1e6:.1f} MB (XLA's counts)",
        f"of what the device can do: {100 * r['mfu']:.0f}% of {r['measured_flop_per_second'] / 1e12:.3g} TFLOP/s, "
        f"{100 * r['bandwidth_share']:.0f}% of {r['measured_bytes_per_second'] / 1e9:.0f} GB/s (measured)",
        f"memory: {r['peak_memory_bytes'] / 2**20:.0f} MiB ({r['peak_memory_of']})",
        "time of a step: " + ", ".join(f"{part} {100 * share:.0f}%" for part, share in r["step_share"].items()),
        "heaviest operations of a step:",
        *(_operation(**found) for found in r["heaviest_operations"]),
    ]
    return "\n".join(lines)


def _operation(name: str, part: str, source: str, share: float) -> str:
    return f"{100 * share:>5.1f}%  {part:12}{name:36}{source[-90:]}"


def _compilation(r: dict) -> str:
    if r["compile_seconds_cold"] is None:
        return "compilation: not measured"
    return f"compilation: {r['compile_seconds_cold']:.1f} s, {r['compile_seconds_cached']:.1f} s from the cache"


def _row(name: str, r: dict) -> str:
    latency = f"{r['stream_latency_ms_p50']:.2f} / {r['stream_latency_ms_p99']:.2f}"
    return f"{name:34}{r['train_windows_per_second']:>12.0f}{r['score_windows_per_second']:>12.0f}{latency:>16}"
