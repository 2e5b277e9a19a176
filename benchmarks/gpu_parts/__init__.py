"""Parts of benchmarks/gpu.py.

timing      spreads of times, and copy bandwidth
layers      FFN layers of random weights at real shapes, and what computes them
tune        the fastest tiles, kept on disk
verify      kernels against fp32, before anything is timed
"""
