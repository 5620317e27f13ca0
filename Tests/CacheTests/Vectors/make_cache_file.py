"""Writes cache-v1.tamis, a cache file of version 1, from docs/formats.md alone: nothing of the library is used, the
checksum included. The library must open it for ever, and must write the same bytes when it saves the same sequence.

    python3 Tests/CacheTests/Vectors/make_cache_file.py

The sequence: 20 tokens with ids 100 ... 119, two layers, F32 keys of 8 numbers, I8 index keys of 16, pages of 16 tokens.
"""
import pathlib
import struct

LAYERS, KEY, INDEX, PAGE, TOKENS = 2, 8, 16, 16, 20
FINGERPRINT = b"golden model 1"


def xxh64(data):
    """The xxHash specification's XXH64, seed 0."""
    p1, p2, p3, p4, p5 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63,
                          0x27D4EB2F165667C5)
    mask = (1 << 64) - 1

    def rotated(x, bits):
        return (x << bits | x >> (64 - bits)) & mask

    def mixed(lane, word):
        return rotated((lane + word * p2) & mask, 31) * p1 & mask

    at, length = 0, len(data)
    if length >= 32:
        lanes = [(p1 + p2) & mask, p2, 0, -p1 & mask]
        while at + 32 <= length:
            lanes = [mixed(lane, word) for lane, word in zip(lanes, struct.unpack_from("<4Q", data, at))]
            at += 32
        total = sum(rotated(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18))) & mask
        for lane in lanes:
            total = ((total ^ mixed(0, lane)) * p1 + p4) & mask
    else:
        total = p5
    total = (total + length) & mask
    while at + 8 <= length:
        total = (rotated(total ^ mixed(0, struct.unpack_from("<Q", data, at)[0]), 27) * p1 + p4) & mask
        at += 8
    if at + 4 <= length:
        total = (rotated(total ^ struct.unpack_from("<I", data, at)[0] * p1 & mask, 23) * p2 + p3) & mask
        at += 4
    for byte in data[at:]:
        total = rotated(total ^ byte * p5 & mask, 11) * p1 & mask
    total = (total ^ total >> 33) * p2 & mask
    total = (total ^ total >> 29) * p3 & mask
    return total ^ total >> 32


def key(layer, token):
    return [((token * 7 + j * 3 + layer) % 17 - 8) / 4 for j in range(KEY)]


def index_key(layer, token):
    """One number is 127, so that the scale is 1 and the codes are the numbers."""
    return [127 if j == token % INDEX else (token * 5 + j * 11 + layer) % 200 - 100 for j in range(INDEX)]


def padded(data, unit):
    return data + bytes(-len(data) % unit)


def page(first):
    image = bytes(64)
    for layer in range(LAYERS):
        tokens = [token for token in range(first, first + PAGE) if token < TOKENS]
        keys = b"".join(struct.pack(f"<{KEY}f", *key(layer, token)) for token in tokens)
        codes = b"".join(struct.pack(f"{INDEX}b", *index_key(layer, token)) for token in tokens)
        scales = struct.pack(f"<{len(tokens)}f", *([1.0] * len(tokens)))
        image += padded(keys.ljust(PAGE * KEY * 4, b"\0"), 64)
        image += padded(codes.ljust(PAGE * INDEX, b"\0") + scales.ljust(PAGE * 4, b"\0"), 64)
    return image


def file():
    pages = [page(first) for first in range(0, TOKENS, PAGE)]
    table = padded(FINGERPRINT, 8) + padded(struct.pack(f"<{TOKENS}i", *range(100, 100 + TOKENS)), 8)
    table += b"".join(struct.pack("<Q", xxh64(page)) for page in pages)
    table = table.ljust((128 + len(table) + 8 + 4095) // 4096 * 4096 - 128 - 8, b"\0")
    table += struct.pack("<Q", xxh64(table))
    body = b"".join(padded(page, 4096) for page in pages)
    header = struct.pack("<8sIIQQQ", b"TAMISSEQ", 1, len(FINGERPRINT), TOKENS, len(pages[0]),
                         128 + len(table) + len(body))
    # layers, kv_heads, key_dim, value_dim, own_values, index_dim, kv_dtype F32, index_dtype I8, page_tokens
    header += struct.pack("<9i", LAYERS, 1, KEY, KEY, 0, INDEX, 1, 5, PAGE)
    header = header.ljust(120, b"\0")
    return header + struct.pack("<Q", xxh64(header)) + table + body


if __name__ == "__main__":
    assert xxh64(b"abc") == 0x44BC2CF5AD770999 and xxh64(bytes(range(77))) == 0x93F85C1B6280EAD3
    (pathlib.Path(__file__).parent / "cache-v1.tamis").write_bytes(file())
