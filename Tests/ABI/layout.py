"""layout.py HEADER OUTPUT.c: writes a C program that prints what binary compatibility rests on.

The program prints every constant, every struct's size with its fields' offsets and sizes, and every function's
declaration. Its output is compared with layout.txt. The lists come from the header itself, so nothing can be left
out by forgetting; the numbers come from the C compiler.
"""
import re
import sys


def squeeze(text):
    return " ".join(text.split())


def declarations(header):
    """(constants, structs, functions) of a header written in tamis.h's style."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    constants = [name for body in re.findall(r"enum\s*\{(.*?)\}", text, flags=re.S)
                 for name in re.findall(r"(\w+)\s*=", body)]
    structs = [(name, fields(body)) for body, name in
               re.findall(r"typedef struct \w+ \{(.*?)\}\s*(\w+);", text, flags=re.S)]
    functions = [squeeze(found) for found in re.findall(r"TAMIS_API ([^;{]*);", text, flags=re.S)]
    return constants, structs, functions


def fields(body):
    names = []
    for member in filter(None, map(str.strip, body.split(";"))):
        pointer = re.search(r"\(\*(\w+)\)", member)
        names.append(pointer.group(1) if pointer else re.search(r"(\w+)(\[\d+\])?$", member).group(1))
    return names


def program(header):
    constants, structs, functions = declarations(header)
    yield "#include <stdio.h>\n#include <tamis.h>\nint main(void) {"
    for name in constants:
        yield f'  printf("{name} = %d\\n", {name});'
    for struct, names in structs:
        yield f'  printf("struct {struct}: %zu bytes\\n", sizeof(struct {struct}));'
        for name in names:
            yield (f'  printf("  {name} at %zu, %zu bytes\\n", offsetof(struct {struct}, {name}),'
                   f' sizeof(((struct {struct} *)0)->{name}));')
    for function in functions:
        yield f'  puts("{function}");'
    yield "  return 0;\n}"


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as source, open(sys.argv[2], "w", encoding="utf-8") as output:
        output.write("\n".join(program(source.read())) + "\n")
