#!/bin/sh
# The whole story from an empty folder: mark, card, dated plan, generation, student, verdict, known error rate, bundle,
# its check without PyTorch, the independent checker, the report.
#
#     docs/story.sh FOLDER [MODEL]
#
# MODEL is a folder; without it the 135M model of the demo is used. Smaller: ANSWERS=8 TOKENS=32 PROBES=8 docs/story.sh ...
# It needs the extras [demo,evidence,torch], and openssl, which plays the timestamp authority.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"
[ -z "$(ls -A)" ] || { echo "$1 is not empty" >&2; exit 2; }
PYTHON=${PYTHON:-python3}
model=${2:-$($PYTHON -c "from verify.planning.demo import teacher_model; print(teacher_model())")}
ANSWERS=${ANSWERS:-24} TOKENS=${TOKENS:-96} EPOCHS=${EPOCHS:-4} PROBES=${PROBES:-40} KEYS=${KEYS:-200}

step() { printf '\n=== %s\n' "$*"; }
stillmark() { printf '$ stillmark %s\n' "$*"; $PYTHON -m verify.cli "$@"; }

step "1. The owner makes a mark, and publishes its card: a commitment to the secret"
stillmark mark new --tokenizer "$model" --delta 4 --label story --out owner.mark
stillmark mark publish owner.mark --out owner.card

step "2. The teacher answers prompts with the mark, and its users see the answers"
$PYTHON - "$ANSWERS" > prompts.jsonl <<'END'
import json, sys
from verify.planning.builtin import builtin_prompts
for prompt in builtin_prompts()[: int(sys.argv[1])]:
    print(json.dumps({"id": prompt.id, "prompt": prompt.text}))
END
stillmark generate --model "$model" --mark owner.mark --prompts prompts.jsonl --max-new-tokens "$TOKENS" --out answers.jsonl

step "3. Somebody trains a student on them"
stillmark student --base "$model" --outputs answers.jsonl --epochs "$EPOCHS" --learning-rate 5e-4 --out student

step "4. Probes that cannot carry the mark: answers of the package, written before the mark was made"
$PYTHON - owner.mark "$PROBES" > probes.jsonl <<'END'
import json, sys
from verify.planning.builtin import builtin_probes
from watermark import Mark
for probe in builtin_probes(Mark.load(sys.argv[1]), number=int(sys.argv[2])):
    ids = {"prompt_ids": probe.prompt_ids.tolist(), "output_ids": probe.output_ids.tolist()}
    print(json.dumps({"id": probe.id, **ids, "marked": False}))
END

step "5. Before the owner looks at the suspect: a plan, and a date that others can confirm (RFC 3161)"
stillmark evidence plan student --mark owner.mark --reference "$model" --probes probes.jsonl --out plan.json
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=root -keyout ca.key -out ca.pem 2> openssl.log
openssl req -newkey rsa:2048 -nodes -subj /CN=authority -keyout tsa.key -out tsa.csr 2>> openssl.log
printf 'keyUsage=critical,digitalSignature\nextendedKeyUsage=critical,timeStamping\nbasicConstraints=CA:FALSE\n' > tsa.ext
openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -in tsa.csr -extfile tsa.ext -out tsa.pem 2>> openssl.log
echo 01 > serial
cat > tsa.conf <<'END'
[own]
serial = serial
crypto_device = builtin
signer_cert = tsa.pem
signer_key = tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
END
$PYTHON - > port.txt 2> tsa.log <<'END' &
import http.server, pathlib, subprocess

class Authority(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        pathlib.Path("query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        words = "openssl ts -reply -config tsa.conf -section own -queryfile query -out answer"
        subprocess.run(words.split(), check=True)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(pathlib.Path("answer").read_bytes())

server = http.server.HTTPServer(("127.0.0.1", 0), Authority)
print(server.server_port, flush=True)
server.handle_request()
END
authority=$!
until [ -s port.txt ]; do sleep 0.1; done
stillmark evidence timestamp plan.json --tsa "http://127.0.0.1:$(cat port.txt)"
wait $authority

step "6. The verdict, under the plan"
stillmark verify student --mark owner.mark --reference "$model" --probes probes.jsonl --plan plan.json --out case

step "7. How often does the test err? The same test on the model that never saw the answers, under decoy keys"
stillmark calibrate --suspects "$model" --probes probes.jsonl --mark owner.mark --keys "$KEYS" --out case/calibration.json

step "8. All of it in one signed file"
stillmark evidence key --out signing.key
stillmark evidence bundle case --key signing.key

step "9. The other side checks it: offline, and where there is no PyTorch"
$PYTHON -c 'import sys; sys.modules |= {"torch": None, "transformers": None}; from verify.cli import main; main()' \
    evidence check case/bundle.json --public-key signing.key.pub --card owner.card --plan plan.json --tsa ca.pem \
    --reveal owner.mark --outputs case/readings/mark/suspect.jsonl --outputs case/readings/mark/reference.jsonl

step "10. An expert recomputes the numbers without this package, by the standard library alone"
(cd "$here" && $PYTHON -I -c 'import runpy, sys; sys.path.insert(0, "."); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")' \
    recompute_bundle.py "$OLDPWD/case/bundle.json" "$OLDPWD/owner.mark")

step "11. The report, with what was checked for it"
stillmark report case --public-key signing.key.pub --tsa ca.pem
