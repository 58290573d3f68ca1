"""The tables of docs/reliability.md, from bench/results/endurance_{ci,long,gpu}.json; figures.py puts them in."""
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
NOT_RUN = "not run yet"
NOT_BOUNDED = {"fuzzers": "in `make test` a stage of its own", "failing_allocations": "in the long run alone"}


def content(name):
    path = RESULTS / f"endurance_{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def percent(share):
    return f"{100 * share:.1f} %"


def mebibytes(count):
    return f"{count / 2**20:.1f} MiB"


def beside(row):
    """What the machine let the devices do in the same run; quiet machines give all of it."""
    return f", ideal then {percent(row['ideal_share_of_a_quiet_machine'])} of a quiet machine's" if (
        "ideal_share_of_a_quiet_machine" in row) else ""


def sites(row):
    ended = sum(count for code, count in row["exit_codes"].items() if code.startswith("-"))  # by whichever signal
    return (f"{row['sites_failed']:,} of {row['sites']:,} sites" +
            (f"; {ended} ended the process" if ended else ""))


# What a row of the harness says, in words.
SAID = {
    "sigkill_worker": ("SIGKILL of a worker process at random points: output bitwise equal, no record lost or twice",
                       lambda r: f"{r['kills']} kills in {r['runs']} runs, all equal"),
    "sigkill_supervisor": ("SIGKILL of the supervisor at random points, resumed: bitwise equal, no process left",
                           lambda r: f"{r['kills']} kills, {r['runs']} outputs, all equal, {r['orphans']} processes left"),
    "ctrl_c": ("Ctrl-C at random points: ends in time, valid journal, resumed bitwise equal",
               lambda r: f"{r['signals']} signals, {r['runs']} outputs, all equal; slowest end "
                         f"{r['slowest_end_seconds']:.2f} s"),
    "failing_files": ("every file call and every start of a thread or process fails, site by site: documented exit code, read "
                      "= ok + failed, nothing left open, resumed bitwise equal",
                      sites),
    "failing_allocations": ("every allocation fails, site by site: the same, or the process ends and is resumed",
                            sites),
    "failing_devices": ("every call of a device fails in turn (lost, out of memory, wrong): read = ok + failed, or what is "
                        "lost is told",
                        lambda r: f"{r['calls_failed']} calls, {r['runs_wrong']} wrong"),
    "backpressure": ("a producer 100 times as fast as the device: memory within the cap and a tenth",
                     lambda r: f"{r['records']:,} records, {r['producer_times_faster']:.0f} times, "
                               f"{mebibytes(r['grown_bytes'])} of {mebibytes(r['cap_bytes'])}"),
    "slow_device": ("one of three devices four times slower: share of the ideal rate, at least nine tenths",
                    lambda r: f"{percent(r['share_of_ideal'])}{beside(r)}"),
    "lost_device": ("one of three devices lost: share of what is left, from one second after, at least nine tenths",
                    lambda r: f"{percent(r['share_of_what_is_left_after_1_s'])}{beside(r)}"),
    "cpu_layers": ("fuzzed layers and routings of the CPU against the oracle",
                   lambda r: f"{r['layers']:,} layers, {r['failed']} failed"),
    "fuzzers": ("libFuzzer targets",
                lambda r: f"{r['targets']} targets, {r['seconds_each']} s each, {r['executions_in_all']:,} inputs"),
}
GPU_SAID = {
    "fuzzed_layers": ("fuzzed layers, bit for bit against the host model",
                      lambda r: f"{r['layers']:,} layers, {r['elements']:,} elements, {r['differing']} differ"),
    "equal_launches": ("the same launch again and again beside other work",
                       lambda r: f"{r['launches']:,} launches of {r['configurations']} layers, {r['differing_bytes']} bytes differ"),
    "guard_pages": ("every array against unmapped pages",
                    lambda r: f"{r['layers']} layers, {r['arrays']} arrays, no access beside them"),
    "soak": ("soak with golden results",
             lambda r: f"{r['seconds']:.0f} s, {r['launches']:,} launches, {r['differing_bytes']} bytes differ, free memory "
                       f"less by {mebibytes(r['free_memory_drift_bytes'])}"),
    "out_of_memory": ("the device's memory runs out",
                      lambda r: f"{r['steps']} steps: {r['refused']} refused, {r['smaller']} smaller, {r['whole']} whole"),
    "device_lost": ("a device lost in this process is named and refused", lambda r: "yes"),
    "illegal_address": ("an illegal address in a worker process: the record fails alone",
                        lambda r: f"{r['found']} of {r['planted']} found, {r['worker_deaths']} processes started again"),
    "hanging_kernel": ("a kernel that does not end in time: the record fails alone",
                       lambda r: f"{r['found']} of {r['planted']} found, {r['worker_deaths']} processes started again"),
    "several_workers": ("one of several GPUs' worker processes killed, with an illegal address, a kernel that does not end, out "
                        "of memory: nothing lost or twice, bits of one GPU, back at nine tenths of the others' rate in time",
                        lambda r: f"{r['gpus']} GPUs, {r['faults']} faults in {r['records']:,} records, {r['worker_deaths']} "
                                  f"processes started again; back after at most {slowest(r, 'back'):.1f} s, at nine tenths of "
                                  f"the whole rate after {slowest(r, 'whole'):.1f} s"),
    "several_gpus_ctrl_c": ("Ctrl-C at random points of runs over several GPUs: bitwise one GPU's, no process left, memory free",
                            lambda r: f"{r['gpus']} GPUs, {r['signals']} signals; slowest end {r['slowest_end_seconds']:.2f} s, "
                                      f"memory after {r['slowest_memory_free_seconds']:.2f} s"),
    "several_gpus_sigkill_supervisor": ("SIGKILL of their supervisor: the same",
                                        lambda r: f"{r['gpus']} GPUs, {r['signals']} kills; memory after "
                                                  f"{r['slowest_memory_free_seconds']:.2f} s"),
}


def slowest(row, what):
    return max(kind[f"slowest_{what}_seconds"] for kind in row["kinds"].values())


def cell(results, name, say):
    if results is None or name not in results["rows"]:
        if results is not None and not results["long"] and name in NOT_BOUNDED:
            return NOT_BOUNDED[name]
        return NOT_RUN
    row = results["rows"][name]
    return say(row) if row["ok"] else "FAILED"


def table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def tables():
    """The whole part between the markers."""
    bounded, long, gpu = content("ci"), content("long"), content("gpu")
    parts = [table(["what happens, and what is asked", "bounded run", "long run"],
                   [[words, cell(bounded, name, say), cell(long, name, say)] for name, (words, say) in SAID.items()])]
    machines = [f"The {kind} run was on {r['machine']['processor']}, {r['machine']['processors']} processors, load average "
                f"{r['machine']['load_at_start']:.1f} at its start" +
                (f", {percent(r['scale'])} of the full numbers" if r.get("scale", 1) != 1 else "")
                for kind, r in (("bounded", bounded), ("long", long)) if r is not None]
    parts.append(". ".join(machines) + ".\n" if machines else "")
    parts.append(table(["on a GPU", "long run" if gpu is None else gpu["gpu"]],
                       [[words, cell(gpu, name, say)] for name, (words, say) in GPU_SAID.items()]))
    return "\n".join(part for part in parts if part)
