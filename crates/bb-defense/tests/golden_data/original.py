"""Runs parts of an original repository: functions, classes and stretches of long functions, out of their source files.

The files themselves are not imported, because they import each other and packages that the parts do not need. Each
part runs as it is written, in a namespace of ours, so that what it draws or hands on can be given and recorded.
"""
import ast
import subprocess


class Repository:
    """A clone at the commit that a generator was written for."""

    def __init__(self, folder, commit):
        head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        if not head.stdout.startswith(commit):
            raise SystemExit(f"{folder} is at {head.stdout.strip()}, and this was written for {commit}")
        self.folder = folder

    def _tree(self, path):
        with open(f"{self.folder}/{path}", encoding="utf-8") as file:
            return ast.parse(file.read())

    def load(self, path, names, given, taps=()):
        """The top-level functions and classes `names` of a file, in one namespace with what is `given`.

        For each `(function, variable)` of `taps` the function calls `given["tap"]` with its local variables whenever
        it has set that variable.
        """
        body = [node for node in self._tree(path).body if getattr(node, "name", None) in names]
        missing = set(names) - {node.name for node in body}
        if missing:
            raise SystemExit(f"{path} has no {missing}")
        for function, variable in taps:
            _insert_tap(next(node for node in body if node.name == function), variable)
        space = dict(given)
        exec(compile(ast.fix_missing_locations(ast.Module(body, [])), path, "exec"), space)
        return space

    def stretch(self, path, function, first, last, containing=""):
        """Statements of one block of a function (`class.method`): from the one whose code, as `ast.unparse` writes it,
        begins with `first` to the one that begins with `last`, as code to `exec`."""
        node = self._tree(path)
        for name in function.split("."):
            node = next(child for child in node.body if getattr(child, "name", None) == name)
        for inner in ast.walk(node):
            for field in ("body", "orelse"):
                block = getattr(inner, field, None)
                if not isinstance(block, list):
                    continue
                text = [ast.unparse(statement) for statement in block]
                starts = [i for i, code in enumerate(text) if code.startswith(first)]
                for start in starts:
                    ends = [i for i in range(start, len(text)) if text[i].startswith(last)]
                    if ends and containing in "\n".join(text[start:ends[0] + 1]):
                        part = block[start:ends[0] + 1]
                        return compile(ast.fix_missing_locations(ast.Module(part, [])), path, "exec")
        raise SystemExit(f"{path}: {function} has no block from `{first}` to `{last}`")


def _insert_tap(function, variable):
    call = ast.parse("tap(dict(locals()))").body[0]
    found = False
    for node in ast.walk(function):
        for field in ("body", "orelse"):
            block = getattr(node, field, None)
            if not isinstance(block, list):
                continue
            for i in range(len(block) - 1, -1, -1):
                targets = getattr(block[i], "targets", [])
                if any(isinstance(t, ast.Name) and t.id == variable for t in targets):
                    block.insert(i + 1, call)
                    found = True
    if not found:
        raise SystemExit(f"{function.name} never sets {variable}")


class Instead:
    """A module, or what else has attributes, with some of them replaced."""

    def __init__(self, of, **replaced):
        self.__dict__.update(replaced)
        self.__dict__["_of"] = of

    def __getattr__(self, name):
        return getattr(self._of, name)
