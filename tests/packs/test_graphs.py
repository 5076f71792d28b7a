"""Graphs: what an ONNX file may not bring along."""

import onnx
import pytest
from onnx import TensorProto, helper

from appliance.domain.errors import PackContentError
from appliance.packs.graphs import check_graph
from tests.fakes.tiny_pack import encoder_graph


def graph_of(*nodes: onnx.NodeProto, functions: tuple[onnx.FunctionProto, ...] = ()) -> onnx.ModelProto:
    """A graph from `x` to `y` of single numbers."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in "xy"]
    domains = [helper.make_opsetid("", 21), *(helper.make_opsetid(each.domain, 1) for each in functions)]
    graph = helper.make_graph(list(nodes), "small", tensors[:1], tensors[1:])
    return helper.make_model(graph, opset_imports=domains, functions=list(functions), ir_version=10)


def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    """One side of an `If`."""
    return helper.make_graph(list(nodes), "branch", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, (1,))])


def checked(model: onnx.ModelProto) -> None:
    """Check it as a file's content."""
    check_graph(model.SerializeToString(), "small.onnx")


def test_a_graph_of_standard_operators_is_taken() -> None:
    """Standard operators, and functions that the file itself defines, are all that a runtime needs."""
    checked(encoder_graph())
    body = [helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function("local", "Turn", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    checked(graph_of(helper.make_node("Turn", ["x"], ["y"], domain="local"), functions=(function,)))


def test_an_operator_from_elsewhere_is_named() -> None:
    """A custom operator would have to be loaded as code."""
    with pytest.raises(PackContentError, match=r"evil\.Run"):
        checked(graph_of(helper.make_node("Run", ["x"], ["y"], domain="evil")))


def test_an_operator_hidden_in_a_branch_or_a_function_is_found() -> None:
    """Subgraphs and functions are looked into as well."""
    hidden = branch(helper.make_node("Run", ["x"], ["out"], domain="evil"))
    plain = branch(helper.make_node("Identity", ["x"], ["out"]))
    choice = helper.make_node("If", ["c"], ["y"], then_branch=plain, else_branch=hidden)
    with pytest.raises(PackContentError, match=r"evil\.Run"):
        checked(graph_of(helper.make_node("Cast", ["x"], ["c"], to=TensorProto.BOOL), choice))
    body = [helper.make_node("Cast", ["a"], ["c"], to=TensorProto.BOOL), choice]
    function = helper.make_function("local", "Turn", ["a"], ["y"], body, [helper.make_opsetid("", 21)])
    with pytest.raises(PackContentError, match=r"evil\.Run"):
        checked(graph_of(helper.make_node("Turn", ["x"], ["y"], domain="local"), functions=(function,)))


def outside(name: str) -> onnx.TensorProto:
    """A tensor whose values lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def test_weights_in_another_file_are_refused() -> None:
    """Initializers, sparse ones, and constants of nodes must lie in the graph itself."""
    model = encoder_graph()
    model.graph.initializer.append(outside("w"))
    with pytest.raises(PackContentError, match="keeps the weights w in another file"):
        checked(model)
    sparse = encoder_graph()
    sparse.graph.sparse_initializer.add(values=outside("s"))
    with pytest.raises(PackContentError, match="keeps the weights s"):
        checked(sparse)
    with pytest.raises(PackContentError, match="keeps the weights k"):
        checked(graph_of(helper.make_node("Constant", [], ["y"], value=outside("k"))))


@pytest.mark.parametrize("data", [b"", b"not onnx", b"\x80\x04\x95."])
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    """Empty, foreign or pickled content is no graph."""
    with pytest.raises(PackContentError, match=r"small\.onnx is no valid ONNX graph"):
        check_graph(data, "small.onnx")


def test_a_damaged_name_is_no_crash() -> None:
    """A file whose bytes no longer spell its tensors' names is refused like any other damage."""
    damaged = encoder_graph().SerializeToString().replace(b"cells", b"c\xe5lls", 1)
    with pytest.raises(PackContentError, match=r"small\.onnx is no valid ONNX graph"):
        check_graph(damaged, "small.onnx")


def test_a_graph_that_breaks_the_standard_is_refused() -> None:
    """A whole file that the ONNX checker refuses is refused with its reason."""
    with pytest.raises(PackContentError, match="no valid ONNX graph"):
        checked(graph_of(helper.make_node("Neg", ["nowhere"], ["y"])))
