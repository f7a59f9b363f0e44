"""Asks the server of server.py, and compares what Coati says of each request with nvidia-smi and with the server's own times."""
import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request

server, backend = sys.argv[1], sys.argv[2]
smi = subprocess.Popen(["nvidia-smi", "--query-gpu=name,uuid,utilization.gpu,power.draw,memory.used,temperature.gpu", "--format=csv,noheader,nounits",
                        "-lms", "200"], stdout=subprocess.PIPE, text=True)
asked = []
# What server.py does for each token: repeat * layers * (a product and a tanh), and a wait.
REPEAT, LAYERS = 20, int(os.environ.get("LAYERS", "24"))


def ask(model, tokens):
    body = json.dumps({"model": model, "stream": True, "options": {"num_predict": tokens, "prompt_tokens": 512, "repeat": REPEAT}}).encode()
    request = urllib.request.Request(server + "/api/generate", body, {"content-type": "application/json"})
    begin, first, last = time.perf_counter(), None, None
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            first = first or time.perf_counter() - begin
            last = json.loads(line)
    return first, time.perf_counter() - begin, last


try:
    # PyTorch loads CUDA with its first use; then the agent has to find the library.
    ask("warm-up", 5)
    time.sleep(4)
    for tokens in (20, 200, 600):
        model = f"random-{tokens}-{time.time_ns()}"
        asked.append((model, tokens, *ask(model, tokens)))
finally:
    smi.terminate()
rows = [line.split(", ") for line in smi.stdout.read().splitlines() if line.count(",") == 5]
power = [float(row[3]) for row in rows]
print(f"GPU {rows[0][0]}, nvidia-smi: {min(power)} to {max(power)} W, memory up to {max(float(row[4]) for row in rows)} MiB")
time.sleep(2)


def get(path):
    with urllib.request.urlopen(backend + path) as answer:
        return json.load(answer)


failures = 0
for model, tokens, first, whole, last in asked:
    query = urllib.parse.quote(f'{{ kind = server && span.gen_ai.request.model = "{model}" }}')
    traces = get(f"/api/search?q={query}").get("traces", [])
    spans = [span for trace in traces for batch in get(f"/api/traces/{trace['traceID']}")["batches"] for scope in batch["scopeSpans"] for span in scope["spans"]]
    span = next((span for span in spans if span["kind"] == "SPAN_KIND_SERVER"), None)
    if span is None:
        print(f"{model}: NO SPAN")
        failures += 1
        continue
    said = {pair["key"]: next(iter(pair["value"].values())) for pair in span["attributes"]}
    number = lambda key: float(said.get(key, "nan"))
    checks = {
        "tokens": number("gen_ai.usage.output_tokens") == tokens,
        "first token": abs(number("gen_ai.response.time_to_first_chunk") - first) < 0.01,
        "GPU": said.get("hw.id") in {row[1] for row in rows},
        "power": min(power) * 0.8 <= number("hw.power") <= max(power) * 1.2,
        "energy": abs(number("coati.gpu.energy") / (number("hw.power") * whole) - 1) < 0.25,
        "memory": number("hw.gpu.memory.usage") > 0,
        # The prompt is one pass more; a product may be more than one kernel.
        "launches": 0.99 <= number("coati.gpu.cuda.launches") / ((tokens * REPEAT + 1) * LAYERS * 2) < 3,
        "synchronisations": tokens <= number("coati.gpu.cuda.synchronizations") <= 3 * tokens + 10,
        "time in them": 0 < number("coati.gpu.cuda.synchronization.duration") <= whole,
    }
    print(f"{tokens} tokens in {whole:.2f} s, first after {first:.3f} s:",
          {key: value for key, value in said.items() if key.startswith(("hw.", "coati.gpu", "coati.inf", "gen_ai.usage", "gen_ai.response.time"))})
    for name, good in checks.items():
        if not good:
            print(f"  WRONG: {name}")
            failures += 1
print("all as it should be" if failures == 0 else f"{failures} differences")
sys.exit(failures > 0)
