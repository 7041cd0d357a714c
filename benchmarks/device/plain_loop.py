"""Time a model in a runtime without any code of mvp-edge: the reference of `crosscheck`.

    python plain_loop.py MODEL RUNTIME THREADS SECONDS → {"p50": ms, "n": …}

Like onnxruntime_perf_test: warm up, then time each call separately until the seconds are over.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

model, runtime, threads, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
if runtime == "onnxruntime":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0]
    image = {feed.name: np.random.default_rng(1).random(feed.shape, dtype=np.float32)}
    run: Callable[[], object] = partial(session.run, None, image)
else:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    request.get_input_tensor().data[:] = np.random.default_rng(1).random(compiled.input(0).shape)
    run = request.infer
times: list[float] = []
begin = time.perf_counter()
while (now := time.perf_counter()) - begin < 1 + seconds:
    run()
    if now - begin > 1:  # the first second warms up
        times.append(time.perf_counter() - now)
print(json.dumps({"p50": 1e3 * float(np.median(times)), "n": len(times)}))
