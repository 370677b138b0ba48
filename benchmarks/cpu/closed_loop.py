"""Measures `edgedistill stream` between an amplifier and a screen: losses, added time, planted faults, page, memory.

Students have random weights. An amplifier in a process of its own sends over Lab Streaming Layer at its true pace and
receives what is decoded. The time of an output counts from the moment when the last sample of its bin was due. The
empty loop is a program that answers the same samples without decoding. Each part is written into `stream.json` with its
own conditions, so it can be measured again alone. The exit code is 1 if a sample was lost or a bit differs.

    python -m benchmarks.cpu.closed_loop [--seconds 60] [--measure lsl_1000_hz page_1000_hz] [--preset nano]
        [--engine c] [--out benchmarks/results/cpu]
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from safetensors.numpy import save

from benchmarks.cpu.array_models import draw_deviation_model, draw_spatial_model
from benchmarks.cpu.c_models import draw_model, draw_weights, make_front_end
from benchmarks.harness import RESULTS, ROOT, Result, describe_conditions, option_parser, say, write_result
from edgedistill.bundle import write_bundle
from edgedistill.config import StudentShape, load_preset
from edgedistill.data.recording import open_recording
from edgedistill.decoding import decode_file
from edgedistill.live.loop import LiveSettings, LiveStream
from edgedistill.live.records import StreamBlock, StreamDescription
from edgedistill.live.sinks.page import PageSink
from edgedistill.live.sources.replay import ReplaySource
from edgedistill.measure.latency import LatencyUs
from edgedistill.pipeline.channel_files import write_channel_files
from edgedistill.quantization.onnx_graph import graph_from_student
from edgedistill.runtime import Decoder

CHANNELS, OUTPUTS = 96, 2
CHUNK_S = 0.001
SETTLE_S = 2.0  # of outputs that are left out of the times
PARTS = ("lsl_1000_hz", "lsl_30000_hz", "faults_1000_hz", "page_1000_hz", "page_30000_hz", "memory")
FAULTS = ("dropped", "duplicated", "delayed", "reordered")
DELAY_S = 0.05


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each loop over LSL, and of the faults")
    parser.add_argument("--empty-seconds", type=float, help="of each empty loop  [default: as --seconds]")
    parser.add_argument(
        "--patience", type=float, default=250.0, help="of `stream` over LSL, in ms, which a stall exceeds"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of the recording that shows the memory")
    parser.add_argument("--speed", type=float, default=20.0, help="of its replay")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--engine", default="c")
    parser.add_argument("--measure", nargs="+", choices=PARTS, default=PARTS, help="parts; others stay as they are")
    parser.add_argument("--part", choices=("amplifier", "echo"), help="how this module starts itself")
    parser.add_argument("--rate", type=int)
    options = parser.parse_args()
    if options.part is not None:
        {"amplifier": run_amplifier, "echo": run_echo}[options.part](options.rate, options.seconds)
        return
    held = options.out / "stream.json"
    result = json.loads(held.read_text()) if held.exists() else {}
    for part in options.measure:
        say(part)
        conditions, before = describe_conditions("benchmarks.cpu.closed_loop"), os.getloadavg()
        with tempfile.TemporaryDirectory() as folder, search_on_this_machine(Path(folder)):
            found = measure_part(part, Path(folder), options)
        device = conditions.pop("device")
        result["device"] = {name: value for name, value in device.items() if name != "load"}
        result[part] = {**conditions, "load_before": before, "load_after": os.getloadavg(), **found}
        write_result(options.out, "stream", result)
        print(json.dumps({part: result[part]}, indent=1))
    loops = [result[part] for part in options.measure if part.startswith("lsl")]
    if any(loop["samples_lost"] or not loop["equals_run"] for loop in loops):
        sys.exit("samples were lost, or bits differ from those of run")


def measure_part(part: str, folder: Path, options: Any) -> Result:
    if part == "memory":
        return measure_memory(folder, options)
    rate = int(part.split("_")[1])
    bundle = write_random_bundle(folder / f"{rate}.edge", options.preset, rate, CHANNELS)
    measure = {"lsl": measure_loopback, "faults": measure_faults, "page": measure_page}[part.split("_")[0]]
    return measure(bundle, rate, options)


# ---------------------------------------------------------------- bundles


def write_random_bundle(path: Path, preset: str, rate: int, channels: int) -> Path:
    """Writes a bundle with random weights and returns its path."""
    config = make_front_end(channels, Fraction(rate))
    student = load_preset(preset).student
    shape = StudentShape(
        config.inputs, OUTPUTS, student.d, student.layers, student.heads, student.window, student.ff, student.taps,
        student.dilation, student.lags,
    )  # fmt: skip
    weights = draw_weights(shape)
    files = write_channel_files(draw_spatial_model(config), draw_deviation_model(channels, OUTPUTS)) | {
        "student.onnx": graph_from_student(shape, weights).SerializeToString(),
        "student.safetensors": save(weights),
        "student.int8.safetensors": save(dict(draw_model(shape).tensors)),
    }
    manifest: dict[str, object] = {
        "name": f"random-{preset}-{rate}",
        "created_by": "benchmarks.cpu.closed_loop",
        "model": shape.to_json(),
        "frontend": config.to_json(),
        "normalization": {"mean": [0.0] * config.inputs, "std": [60.0] * config.inputs},
        "channel_ids": [str(channel) for channel in range(channels)],
        "outputs": [{"name": f"vel_{axis}", "unit": "cm/s"} for axis in "xy"],
        "session": {"id": "none", "subject": "none"},
        "preset": preset,
        "target": "host",
        "group_delay_ms": 5.0,
    }
    return write_bundle(path, manifest, files).path


# ---------------------------------------------------------------- loopback


@contextmanager
def search_on_this_machine(folder: Path) -> Iterator[None]:
    """Keeps LSL's search for streams on this machine."""
    settings = folder / "lsl_api.cfg"
    settings.write_text("[multicast]\nResolveScope = machine\n[log]\nlevel = -2\n")
    os.environ["LSLAPICFG"] = str(settings)
    yield


def measure_loopback(bundle: Path, rate: int, options: Any) -> Result:
    recording = bundle.with_suffix(".nwb")
    subprocess.run([*stream_command(bundle, options), "--from", "-", "--to", "csv:-"], input=b"", capture_output=True)
    stream = [*stream_command(bundle, options), "--from", "lsl:amplifier", "--to", "lsl:decoded"]
    stream += [
        "--to",
        f"nwb:{recording}",
        "--seconds",
        str(options.seconds),
        "--patience",
        str(options.patience),
        "--json",
    ]
    decoded, facts = run_pair(stream, rate, options.seconds)
    empty_s = options.empty_seconds or options.seconds
    empty, _ = run_pair(part_command("echo", rate, empty_s), rate, empty_s)
    counters = json.loads(facts)["counters"]
    inside = read_latencies(recording)
    return {
        "seconds": options.seconds,
        "patience_ms": options.patience,
        "channels": CHANNELS,
        "samples_sent": decoded["sent"],
        "samples_decoded": counters["frames"],
        "samples_lost": counters["lost_frames"],
        "samples_late": counters["late_frames"],
        "equals_run": equals_run(bundle, recording, options.engine),
        "outputs_received": decoded["received"],
        "added_us": decoded["times"],
        "empty_loop_us": empty["times"],
        "empty_loop_seconds": empty_s,
        "inside_us": inside,
        "late_bins": counters["late_bins"],
        "jitter_ms": counters["jitter_ms"],
        "drift_ppm": counters["drift_ppm"],
        "sinks": json.loads(facts)["sinks"],
        "real_time": json.loads(facts)["real_time"],
    }


def stream_command(bundle: Path, options: Any) -> list[str]:
    return [sys.executable, "-m", "edgedistill", "stream", str(bundle), "--engine", options.engine]


def part_command(part: str, rate: int, seconds: float) -> list[str]:
    module = "benchmarks.cpu.closed_loop"
    return [sys.executable, "-m", module, "--part", part, "--rate", str(rate), "--seconds", str(seconds)]


def run_pair(command: list[str], rate: int, seconds: float) -> tuple[Result, str]:
    """Runs a loop beside an amplifier, and returns what both print."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as loop:
        amplifier = subprocess.run(part_command("amplifier", rate, seconds), cwd=ROOT, capture_output=True, text=True)
        facts, _ = loop.communicate(timeout=120)
    if amplifier.returncode:
        raise RuntimeError(amplifier.stderr)
    return json.loads(amplifier.stdout), facts


def run_amplifier(rate: int, seconds: float) -> None:
    """Sends noise at its true pace, and prints how long after its last sample each output came back."""
    import pylsl

    with suppress(OSError):  # and so have the threads of LSL
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(40))
    info = pylsl.StreamInfo("amplifier", "LFP", CHANNELS, rate, pylsl.cf_float32, f"amplifier {rate}")
    info.set_channel_labels([str(channel) for channel in range(CHANNELS)])
    info.set_channel_units(["microvolts"] * CHANNELS)
    outlet = pylsl.StreamOutlet(info)
    inlet = pylsl.StreamInlet(pylsl.resolve_byprop("name", "decoded", timeout=300)[0], as_numpy=True)
    inlet.open_stream(timeout=60)
    if not outlet.wait_for_consumers(60):
        raise RuntimeError("nobody listens to the amplifier")
    times: list[float] = []
    ended = threading.Event()
    receiver = threading.Thread(target=receive, args=(pylsl, inlet, times, ended))
    receiver.start()
    count = round(rate * CHUNK_S)
    frames = (60 * np.random.default_rng(0).normal(size=(200, count, CHANNELS))).astype(np.float32)
    chunks = round(seconds / CHUNK_S)
    start = pylsl.local_clock() + 0.1
    for chunk in range(chunks):
        due = start + chunk * CHUNK_S
        while (left := due - pylsl.local_clock()) > 0:
            time.sleep(left)
        outlet.push_chunk(frames[chunk % len(frames)], due)
    time.sleep(2)
    ended.set()
    receiver.join()
    kept = np.array(times[round(100 * SETTLE_S) :]) * 1e9
    found = LatencyUs.from_times(kept.astype(np.int64)).to_json()
    print(json.dumps({"sent": chunks * count, "received": len(times), "times": found}))


def receive(pylsl: Any, inlet: Any, times: list[float], ended: threading.Event) -> None:
    """Notes how old each output is when it arrives."""
    while not ended.is_set():
        try:
            _, stamps = inlet.pull_chunk(timeout=0.2, max_samples=1024, min_samples=1)
        except pylsl.util.LostError:
            return
        now = pylsl.local_clock()
        times.extend(now - stamp for stamp in stamps)


def run_echo(rate: int, seconds: float) -> None:
    """Answers each bin of samples with an empty output, with the same manners as `stream`."""
    import pylsl

    from edgedistill.live.real_time import real_time_manners

    seen, bins, values = 0, 0, np.zeros((1, 2 * OUTPUTS + 2), np.float32)
    with real_time_manners():
        info = pylsl.StreamInfo("decoded", "Decoded", 2 * OUTPUTS + 2, 100, pylsl.cf_float32, "echo")
        outlet = pylsl.StreamOutlet(info)
        inlet = pylsl.StreamInlet(pylsl.resolve_byprop("name", "amplifier", timeout=300)[0], as_numpy=True)
        inlet.open_stream(timeout=60)
        while seen < rate * seconds - rate // 100:
            _, stamps = inlet.pull_chunk(timeout=10, max_samples=1024, min_samples=1)
            if not len(stamps):
                return
            seen += len(stamps)
            while (bins + 1) * rate // 100 <= seen:
                bins += 1
                back = seen - bins * rate // 100
                outlet.push_chunk(values, stamps[len(stamps) - 1 - back])
    time.sleep(1)


def read_latencies(recording: Path) -> dict[str, float]:
    import h5py

    with h5py.File(recording) as file:
        seconds = file["processing/behavior/decoded/latency/data"][round(100 * SETTLE_S) :]
    seconds = seconds[np.isfinite(seconds)]  # NaN stands for bins that the file missed
    return LatencyUs.from_times((seconds * 1e9).astype(np.int64)).to_json()


def equals_run(bundle: Path, recording: Path, engine: str) -> bool:
    """Returns whether `run` on the recording decodes the bits that the stream wrote into it."""
    import h5py

    with Decoder.open(bundle, engine) as decoder, open_recording(recording) as opened:
        whole = decode_file(decoder, opened)
    with h5py.File(recording) as file:
        group = file["processing/behavior/decoded"]
        held = [group[name]["data"][:].tobytes() for name in ("kinematics", "deviation", "flags", "bad_channels")]
    return held == [a.tobytes() for a in (whole.kinematics, whole.deviations, whole.flags, whole.bad_channels)]


# ---------------------------------------------------------------- faults


def measure_faults(bundle: Path, rate: int, options: Any) -> Result:
    """Sends counted frames over a socket with planted faults, and returns what was planted and what was counted."""
    server = socket.create_server(("127.0.0.1", 0))
    planted: dict[str, int] = dict.fromkeys(FAULTS, 0)
    sender = threading.Thread(target=send_with_faults, args=(server, rate, options.seconds, planted))
    sender.start()
    address = f"tcp:127.0.0.1:{server.getsockname()[1]}"
    command = [*stream_command(bundle, options), "--from", address, "--to", f"csv:{bundle.parent}/faults.csv"]
    command += ["--json", "--seconds", str(options.seconds - 0.1)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    sender.join()
    server.close()
    counters = json.loads(done.stdout)["counters"]
    names = ("lost_frames", "gaps", "late_frames", "duplicated_frames", "reordered_frames", "frames", "bins")
    counted = {name: counters[name] for name in names}
    return {"seconds": options.seconds, "planted_frames": planted, "counted": counted}


def send_with_faults(server: socket.socket, rate: int, seconds: float, planted: dict[str, int]) -> None:
    count = round(rate * CHUNK_S) * 5
    rng = np.random.default_rng(1)
    names = [str(channel) for channel in range(CHANNELS)]
    header = {"rate": rate, "channels": names, "type": "float32", "unit": "uV", "byte_order": "little"}
    connection, _ = server.accept()
    connection.sendall(json.dumps(header | {"counter": "uint32"}).encode() + b"\n")
    rows = np.zeros(count, [("counter", "<u4"), ("samples", "<f4", (CHANNELS,))])
    waiting: list[tuple[float, int]] = []  # when chunks are sent, by their first frame
    start, chunks = time.monotonic(), round(seconds * rate / count)
    for chunk in range(chunks):
        due = start + chunk * count / rate
        kind = FAULTS[int(rng.integers(4))] if 20 < chunk < chunks - 40 and rng.random() < 0.04 else None
        if kind is not None:
            planted[kind] += count
        at = {"delayed": due + DELAY_S, "reordered": due + 1.5 * count / rate}.get(kind or "", due)
        waiting += [(at, chunk * count)] * {"dropped": 0, "duplicated": 2}.get(kind or "", 1)
        time.sleep(max(0.0, due - time.monotonic()))
        for item in sorted(item for item in waiting if item[0] <= due):
            waiting.remove(item)
            rows["counter"] = item[1] + np.arange(count)
            rows["samples"] = 60 * rng.normal(size=(count, CHANNELS))
            with suppress(OSError):
                connection.sendall(rows.tobytes())
    time.sleep(1)
    connection.close()


# ---------------------------------------------------------------- page


class TimedPage(PageSink):
    """Shows a page, and notes what its process and the thread that feeds it take."""

    def open(self, description: StreamDescription) -> None:
        """Opens the page."""
        began = time.perf_counter()
        super().open(description)
        assert self._process is not None
        self.start_s, self.feeding_s = time.perf_counter() - began, 0.0
        self.starting_s = read_processor_s(self._process.pid)
        threading.Thread(target=self._watch, daemon=True).start()

    def accept(self, block: StreamBlock) -> None:
        """Shows a block."""
        began = time.thread_time()
        super().accept(block)
        self.feeding_s += time.thread_time() - began

    def close(self) -> None:
        """Ends the page."""
        if self._process is not None:
            pid = self._process.pid
            self.found = {
                "start_s": self.start_s,
                "feeding_s": self.feeding_s,
                "starting_processor_s": self.starting_s,
                "process_s": read_processor_s(pid) - self.starting_s,
                "resident_mb": read_kb(pid, "status", "VmRSS") / 1000,
                "own_mb": sum(read_kb(pid, "smaps_rollup", f"Private_{kind}") for kind in ("Clean", "Dirty")) / 1000,
            }
        super().close()

    def _watch(self) -> None:
        """Reads events, as a browser does."""
        with suppress(OSError), urlopen(f"{self.url}events") as events:
            while events.readline():
                pass


def measure_page(bundle: Path, rate: int, options: Any) -> Result:
    """Shows a replay on a page that a reader watches, and returns what the page takes to start and for each bin."""
    seconds = min(60.0, options.seconds)
    recording = write_noise(bundle.with_suffix(".nwb"), CHANNELS, rate, round(seconds))
    with Decoder.open(bundle, options.engine) as decoder:
        page = TimedPage("0")
        source = ReplaySource(recording, decoder.bundle)
        counters = LiveStream(decoder, source, {"page": page}, LiveSettings()).run(threading.Event())
    found = page.found
    return {
        "seconds": seconds,
        "channels": CHANNELS,
        "start_s": found["start_s"],
        "starting_processor_s": found["starting_processor_s"],
        "resident_mb": found["resident_mb"],
        "own_mb": found["own_mb"],
        "feeding_ms_per_bin": 1000 * found["feeding_s"] / counters.bins,
        "process_ms_per_bin": 1000 * found["process_s"] / counters.bins,
        "blocks": counters.sinks["page"].blocks,
        "dropped_blocks": counters.sinks["page"].dropped_blocks,
    }


def read_processor_s(pid: int) -> float:
    """Returns the time that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_kb(pid: int, file: str, name: str) -> int:
    """Returns one figure of the memory of a process."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# ---------------------------------------------------------------- memory


def measure_memory(folder: Path, options: Any) -> Result:
    """Replays a long recording fast into all files, and returns the resident memory of the stream over time."""
    channels, rate = 16, 1000
    bundle = write_random_bundle(folder / "small.edge", options.preset, rate, channels)
    recording = write_noise(folder / "long.nwb", channels, rate, round(60 * options.minutes))
    command = [*stream_command(bundle, options), "--from", f"replay:{recording}", "--speed", str(options.speed)]
    command += ["--to", f"nwb:{folder}/copy.nwb", "--to", f"csv:{folder}/copy.csv", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as stream:
        sizes = list(watch_memory(stream.pid, lambda: stream.poll() is None))
        facts = json.loads(stream.communicate()[0])
    settled = sizes[len(sizes) // 4 :]
    return {
        "minutes": options.minutes,
        "speed": options.speed,
        "frames": facts["counters"]["frames"],
        "lost_frames": facts["counters"]["lost_frames"],
        "resident_mb": {"quarter": settled[0], "end": settled[-1], "most": max(sizes)},
        "sinks": facts["sinks"],
    }


def watch_memory(pid: int, alive: Callable[[], bool]) -> Iterator[float]:
    """Yields the resident memory in MB once a second."""
    while alive():
        with suppress(OSError, StopIteration):
            yield read_kb(pid, "status", "VmRSS") / 1000
        time.sleep(1)


def write_noise(path: Path, channels: int, rate: int, seconds: int) -> Path:
    """Writes an NWB file of noise."""
    from datetime import datetime, timezone

    from pynwb import H5DataIO, NWBFile
    from pynwb.ecephys import ElectricalSeries

    from edgedistill.data.nwb_writing import write_large_nwb

    nwb = NWBFile("noise", "noise", datetime(2026, 1, 1, tzinfo=timezone.utc), session_id="noise")
    device = nwb.create_device("array")
    group = nwb.create_electrode_group("array", "noise", location="none", device=device)
    for _ in range(channels):
        nwb.add_electrode(location="none", group=group)
    region = nwb.create_electrode_table_region(list(range(channels)), "all")
    data = H5DataIO(shape=(seconds * rate, channels), dtype=np.dtype(np.int16), chunks=(rate, channels))
    nwb.add_acquisition(ElectricalSeries(name="lfp", data=data, electrodes=region, rate=float(rate), conversion=1e-6))
    noise = np.random.default_rng(2).normal(scale=60, size=(10 * rate, channels)).astype(np.int16)
    blocks = (noise[: min(10, seconds - at) * rate] for at in range(0, seconds, 10))
    write_large_nwb(nwb, path, {"acquisition/lfp/data": blocks})
    return path


if __name__ == "__main__":
    main()
