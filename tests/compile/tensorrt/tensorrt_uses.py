"""Finds the uses of TensorRT's Python bindings in a source that a version does not offer.

No use is listed by hand. `trt` is the module, and types follow from there. A call of a class makes one of its objects,
a call of a method makes what its signature in the bindings returns, and an annotation (`network:
trt.INetworkDefinition`) settles the rest. Annotations are checked against the bindings as well. A complaint is made if
a version lacks an attribute, a number of arguments or a keyword. A complaint is also made if the type of an object
cannot be found out, so that no use stays unchecked.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from .tensorrt_bindings import Bindings, Signature

MODULE = "trt"
MODULE_TYPE = "module trt"
UNKNOWN = "?"  # an object of TensorRT whose class nothing states
CLASS_OF = "class "  # prefix of a class itself, in contrast to its objects


@dataclass
class Complaints:
    """Lists the uses that a version does not offer, and all uses that were checked."""

    found: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)


def complaints(source: str, offered: Bindings) -> Complaints:
    """Checks a module's source against one version."""
    reader = _Reader(offered)
    tree = ast.parse(source)
    reader.learn(tree)
    reader.body(tree.body, {})
    return reader.result


class _Reader:
    def __init__(self, offered: Bindings) -> None:
        self.offered, self.result = offered, Complaints()
        self.own: dict[str, str] = {}  # functions of the source -> class of TensorRT that their annotation returns
        self.derived: dict[str, str] = {}  # classes of the source -> class of TensorRT
        self.added: dict[str, set[str]] = {}  # classes of the source -> members that they add

    # ------------------------------------------------------------ declarations

    def learn(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    if name := self._annotated(base):
                        self.derived[node.name], self.added[node.name] = name, _members(node)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and (name := self._annotated(node.returns)):
                self.own[node.name] = name

    def _annotated(self, node: ast.expr | None) -> str | None:
        """Returns the class of TensorRT, or one derived from it, that an annotation names.

        Complains if it does not exist.
        """
        if isinstance(node, ast.BinOp):
            return self._annotated(node.left) or self._annotated(node.right)
        if isinstance(node, ast.Name) and node.id in self.derived:
            return node.id
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == MODULE):
            return None
        self.result.checked.append(f"class {node.attr}")
        if node.attr not in self.offered.classes:
            self._complain(node, f"trt has no class {node.attr}")
        return node.attr

    # ------------------------------------------------------------ statements

    def body(self, statements: list[ast.stmt], names: dict[str, str]) -> None:
        for statement in statements:
            self._statement(statement, names)

    def _statement(self, node: ast.stmt, names: dict[str, str]) -> None:
        if isinstance(node, ast.FunctionDef):
            inner = dict(names)
            for argument in (*node.args.args, *node.args.kwonlyargs):
                if name := self._annotated(argument.annotation):
                    inner[argument.arg] = name
            self.body(node.body, inner)
        elif isinstance(node, ast.ClassDef):
            self._derived_class(node, names)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value, names)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                found = self._type(node.value, names)
            declared = self._annotated(node.annotation)
            if isinstance(node.target, ast.Name) and node.value is not None and (declared or found):
                names[node.target.id] = declared or str(found)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    self._statement(child, names)
                elif isinstance(child, ast.expr):
                    self._type(child, names)
                elif isinstance(child, ast.ExceptHandler):
                    self.body(child.body, names)

    def _assign(self, target: ast.expr, value: ast.expr, names: dict[str, str]) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=True):
                self._assign(one, its, names)
            return
        found = self._type(value, names)
        if isinstance(target, ast.Name) and found:
            names[target.id] = found
        elif isinstance(target, ast.Attribute):
            self._type(target, names)

    def _derived_class(self, node: ast.ClassDef, names: dict[str, str]) -> None:
        """Checks that a method that TensorRT calls takes as many arguments as the same method of the base class."""
        base = self.derived.get(node.name)
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                signatures = self.offered.signatures(base, item.name) if base and item.name != "__init__" else []
                taken = len(item.args.args) - 1
                if signatures and all(len(signature.parameters) != taken for signature in signatures):
                    self._complain(item, f"{base}.{item.name} is called with {signatures[0].parameters}")
                self._statement(item, dict(names))

    # ------------------------------------------------------------ expressions

    def _type(self, node: ast.expr, names: dict[str, str]) -> str | None:
        """Checks all uses in an expression, and returns its class of TensorRT, or None for any other class."""
        if isinstance(node, ast.Name):
            return MODULE_TYPE if node.id == MODULE else names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, self._type(node.value, names))
        if isinstance(node, ast.Call):
            return self._call(node, names)
        inner = dict(names)
        for generator in getattr(node, "generators", ()):
            self._type(generator.iter, inner)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._type(child, inner)
        return None

    def _attribute(self, node: ast.Attribute, owner: str | None) -> str | None:
        if owner is None:
            return None
        if owner == UNKNOWN:
            self._complain(node, f"nothing states the class of '{ast.unparse(node.value)}': annotate it")
            return None
        self.result.checked.append(f"{owner.removeprefix(CLASS_OF)}.{node.attr}")
        if owner == MODULE_TYPE:
            if node.attr not in self.offered.module:
                self._complain(node, f"trt has no {node.attr}")
                return None
            return f"{CLASS_OF}{node.attr}" if node.attr in self.offered.classes else f"{MODULE_TYPE}.{node.attr}"
        if node.attr in self.added.get(owner, ()):
            return None
        cls = self.derived.get(owner, owner.removeprefix(CLASS_OF))
        if cls in self.offered.classes and not self.offered.has_member(cls, node.attr):
            self._complain(node, f"{cls} has no {node.attr}")
        return None  # the types of properties and of members of enumerations are not followed

    def _call(self, node: ast.Call, names: dict[str, str]) -> str | None:
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self._type(argument, names)
        called = node.func
        if isinstance(called, ast.Name):
            return called.id if called.id in self.derived else self.own.get(called.id)
        if not isinstance(called, ast.Attribute):
            self._type(called, names)
            return None
        owner = self._type(called.value, names)
        kind = self._attribute(called, owner)
        if owner is None:
            return None
        if owner == MODULE_TYPE and kind and kind.startswith(CLASS_OF):
            return self._fitting(node, self.offered.signatures(called.attr, "__init__"), called.attr)
        if owner == MODULE_TYPE:
            return self._fitting(node, self.offered.signatures(None, called.attr))
        if called.attr.startswith("__") or called.attr in self.added.get(owner, ()):  # trt.ILogger.__init__(self)
            return None
        cls = self.derived.get(owner, owner.removeprefix(CLASS_OF))
        return self._fitting(node, self.offered.signatures(cls, called.attr)) if cls in self.offered.classes else None

    def _fitting(self, node: ast.Call, signatures: list[Signature], result: str | None = None) -> str | None:
        """Returns what a call returns by the first overload that it fits. Complains of a call that fits none."""
        keywords = {keyword.arg for keyword in node.keywords}
        for signature in signatures:
            rest = signature.parameters[len(node.args) :]
            required = signature.parameters[: len(signature.parameters) - signature.optional]
            passed = {*signature.parameters[: len(node.args)], *keywords}
            if len(node.args) <= len(signature.parameters) and keywords <= set(rest) and passed.issuperset(required):
                return result or self._known(signature.result)
        if signatures:
            offered = " or ".join(f"({', '.join(signature.parameters)})" for signature in signatures)
            self._complain(node, f"{ast.unparse(node.func)} takes {offered}")
        return result or UNKNOWN

    def _known(self, name: str) -> str | None:
        if name in ("", "bool", "int", "str", "float", "capsule", "CapsuleType", "object"):
            return None
        return name if name in self.offered.classes else UNKNOWN

    def _complain(self, node: ast.expr | ast.stmt, text: str) -> None:
        self.result.found.append(f"line {node.lineno}: {text}")


def _members(node: ast.ClassDef) -> set[str]:
    """Returns the methods of a class of the source, and the attributes that it sets."""
    stored = (item for item in ast.walk(node) if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store))
    methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    return methods | {item.attr for item in stored if isinstance(item.value, ast.Name) and item.value.id == "self"}
