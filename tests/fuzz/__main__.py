"""Coverage-guided fuzzing with atheris (extra ``fuzz``): ``python tests/fuzz SECONDS [TARGET ...]``, SECONDS for each target.

Each target is a process of its own; the last line of each says how many inputs were tried, and results/local/tried.csv notes it.
Status 1 if any target failed; the input is then in crash-* beside a traceback.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SEEDS = {
    "answers": [b"The answer is 12+5=17.", b"#### 1,234.50", b"\\boxed{-3/4}"],
    "svamp_file": [b'[{"ID":"a","Body":"b","Question":"c","Equation":"1","Answer":1.0,"Type":"Addition"}]'],
    "config": [b"steps=3\x1elora_rank=0", b"selector=entropy\x1etoken_share=0.4", b"lora_targets=[q_proj]"],
    "claims": [(ROOT / "data" / "claims.yaml").read_bytes()],
    "tables": [b"a\nschema_version,run_id,step,metric,value\n1,a,1,reward,0.5\n", b"c\nschema_version,run_id,item_id\n1,a,b\n"],
}


def fuzz(name: str, seconds: str) -> None:
    import atheris

    with atheris.instrument_imports(include=["replication", "yaml"]):
        from targets import TARGETS
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=20", "-verbosity=1", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, corpus], TARGETS[name])
        atheris.Fuzz()


def main(seconds: str, names: list[str]) -> int:
    from tried import note

    failed = []
    for name in names or SEEDS:
        words = [sys.executable, str(HERE), "--one", name, seconds]
        done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        tried = re.findall(r"number_of_executed_units:\s*(\d+)", done.stdout)
        print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}: {' '.join(tried[-1:]) or '?'} inputs", flush=True)
        if tried:
            note("fuzz", {name: int(tried[-1])}, failed=int(done.returncode != 0), seconds=float(seconds))
        if done.returncode:
            print(done.stdout[-3000:], flush=True)
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        sys.path.insert(0, str(ROOT))
        fuzz(sys.argv[2], sys.argv[3])
    else:
        sys.path[:0] = [str(ROOT), str(HERE.parent)]
        raise SystemExit(main(sys.argv[1], sys.argv[2:]))
