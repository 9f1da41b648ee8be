"""Memory of weights: pieces never overlap, begin at cache lines, and go back to the system."""

import gc
from concurrent.futures import ThreadPoolExecutor

import psutil

from keifu.nn.kernels import arena


def test_pieces_are_apart_aligned_and_writable():
    with ThreadPoolExecutor(4) as pool:
        pieces = list(pool.map(arena.take, [1, 63, 64, 65, 4096] * 20))
    for number, piece in enumerate(pieces):
        assert piece.data_ptr() % arena.ALIGNED == 0
        piece.fill_(number)
    assert all((piece == number).all() for number, piece in enumerate(pieces))


def test_more_than_a_chunk_is_one_piece():
    piece = arena.take(arena.CHUNK + 1)
    piece[-1] = 7
    assert piece[-1] == 7
    assert piece.numel() == arena.CHUNK + 1


def test_memory_goes_back_with_the_last_piece():
    process = psutil.Process()
    before = process.memory_info().rss
    pieces = [arena.take(arena.CHUNK) for _ in range(8)]
    for piece in pieces:
        piece.fill_(1)
    held = process.memory_info().rss - before
    assert held > 7 * arena.CHUNK
    del piece, pieces
    arena.take(1)  # the newest chunk is kept for what comes next
    gc.collect()
    assert process.memory_info().rss - before < held / 4
