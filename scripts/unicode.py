#!/usr/bin/env python3
"""Makes Sources/TamisShims/unicode_tables.h, the tables of Unicode normalisation, from Python's unicodedata: python3
scripts/unicode.py (with `pip install tokenizers`).

Tokenizers are trained with the tables of Hugging Face's `tokenizers`, which are of Unicode 9: characters of later
versions pass through them unchanged, so they are left out here too. Made with Python 3.11 (Unicode 14) and tokenizers
0.23.3; a newer Python gives the same file."""

import pathlib
import unicodedata

from tokenizers import normalizers

OUT = pathlib.Path(__file__).parent.parent / "Sources" / "TamisShims" / "unicode_tables.h"
FORMS = {form: getattr(normalizers, form)().normalize_str for form in ("NFC", "NFD", "NFKC", "NFKD")}
PROBES = "\u0334\u0316\u0301\u0345"  # combining classes 1, 220, 230 and 240
HANGUL = range(0xAC00, 0xAC00 + 11172)


def known(character):
    """Whether `tokenizers` decomposes and orders it as unicodedata does."""
    texts = [character] + [f"a{probe}{character}" for probe in PROBES] + [f"a{character}{probe}" for probe in PROBES]
    return all(FORMS[form](text) == unicodedata.normalize(form, text) for form in ("NFD", "NFKD") for text in texts)


def packed(name, kind, numbers):
    lines, line = [], " "
    for number in numbers:
        if len(line) + len(number) + 2 > 118:
            lines.append(line)
            line = " "
        line += f" {number},"
    return f"static const {kind} {name}[] = {{\n" + "\n".join(lines + [line]) + "\n};\n"


def main():
    scalars = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF and c not in HANGUL]
    interesting = [c for c in scalars if unicodedata.combining(chr(c)) or unicodedata.decomposition(chr(c))]
    kept = [c for c in interesting if known(chr(c))]
    entries, pool, classes, pairs = [], [], [], []
    for c in kept:
        canonical, compatible = (unicodedata.normalize(form, chr(c)) for form in ("NFD", "NFKD"))
        if canonical == chr(c):
            canonical = ""
        if compatible in (canonical, chr(c)):
            compatible = ""
        if canonical or compatible:
            entries.append(f"{{0x{c:X}, {len(pool)}, {len(canonical)}, {len(compatible)}}}")
            pool += [f"0x{ord(part):X}" for part in canonical + compatible]
        split = unicodedata.decomposition(chr(c)).split()
        if len(split) == 2 and not split[0].startswith("<") and unicodedata.normalize("NFC", chr(c)) == chr(c):
            pairs.append((int(split[0], 16), int(split[1], 16), c))
        combining = unicodedata.combining(chr(c))
        if combining and classes and classes[-1][1] == c - 1 and classes[-1][2] == combining:
            classes[-1][1] = c
        elif combining:
            classes.append([c, c, combining])
    text = "/* Made by scripts/unicode.py for unicode.c: what Unicode 9 says of normalisation, in order of scalars. */\n"
    text += "/* scalar, where its parts are, how many are the canonical ones, how many compatible ones follow them */\n"
    text += packed("decompositions", "struct decomposition", entries) + "\n"
    text += packed("parts", "uint32_t", pool) + "\n"
    text += "/* first, second, composed */\n"
    text += packed("compositions", "struct composition", [f"{{0x{a:X}, 0x{b:X}, 0x{c:X}}}" for a, b, c in sorted(pairs)])
    text += "\n/* first, last, combining class */\n"
    text += packed("classes", "struct class", [f"{{0x{a:X}, 0x{b:X}, {k}}}" for a, b, k in classes])
    OUT.write_text(text)
    print(f"{len(entries)} decompositions of {len(pool)} scalars, {len(pairs)} compositions, {len(classes)} classes;",
          len(interesting) - len(kept), "newer characters left out")


main()
