"""``vllm bench serve`` without vLLM's own entry point (which looks for a distribution
that is called vllm).
"""

from __future__ import annotations

import argparse

from vllm.benchmarks.serve import add_cli_args, main

parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
