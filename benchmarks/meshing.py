"""Meshing time of one 8 x 256 distance network: sparse refinement against the dense grid.

    python benchmarks/meshing.py [--resolution 256] [--dense] [--threads 2]

Fits the network to a real closed form (a slab with a ring, area about 4) for a few seconds, then
meshes it; prints one JSON line and writes it to benchmarks/results/meshing.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.evaluate.meshing import extract_mesh


def distance(x: torch.Tensor) -> torch.Tensor:
    """A box (0.8 x 0.5 x 0.1 half-edges) joined with a torus (0.6, 0.15)."""
    q = x.abs() - torch.tensor([0.8, 0.5, 0.1])
    slab = q.clamp(min=0).norm(dim=1) + q.amax(1).clamp(max=0)
    ring = torch.hypot(torch.hypot(x[:, 0], x[:, 2]) - 0.6, x[:, 1]) - 0.15
    return torch.minimum(slab, ring)


def fitted_network(steps: int = 400) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 256), nn.ReLU()]
    for _ in range(7):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(256, 1))
    optimizer = torch.optim.Adam(net.parameters(), 5e-4)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * (1 - step / steps)
        x = torch.rand(2048, 3) * 2 - 1
        target = distance(x)
        loss = (net(x)[:, 0] - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--dense", action="store_true", help="also mesh the whole grid and compare")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = fitted_network()

    def field(coords: torch.Tensor) -> torch.Tensor:
        return net(coords)[:, 0]

    field(torch.zeros(2048, 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    mesh = extract_mesh(field, args.resolution)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = {
        "resolution": args.resolution,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "evaluations": mesh.metadata["evaluations"],
        "of_dense_grid": round(mesh.metadata["evaluations"] / (args.resolution + 1) ** 3, 4),
        "faces": len(mesh.faces),
        "area": round(float(mesh.area), 3),
        "watertight": bool(mesh.is_watertight),
        "peak_memory_rise_mb": round((after - before) / 1024),
        "threads": args.threads,
        "load_average": round(os.getloadavg()[0], 1),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    if args.dense:
        start = time.perf_counter()
        dense = extract_mesh(field, args.resolution, lipschitz=None)
        record["dense_seconds"] = round(time.perf_counter() - start, 2)
        record["same_faces"] = bool(np.array_equal(mesh.faces, dense.faces))
        record["largest_difference_cells"] = float(
            np.abs(mesh.vertices - dense.vertices).max() * args.resolution / 2
        )
    print(json.dumps(record))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "meshing.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
