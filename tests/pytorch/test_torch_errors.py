"""What is refused: as PyTorch refuses it, or in words of ours."""

import subprocess
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import torch.nn.functional as F

import xentrs.torch

X = torch.zeros(4, 5)
Y = torch.tensor([0, 1, 2, 3])
Q = torch.zeros(4, 5)

SHARED = [
    ("cross_entropy", (X, Y[:3]), {}),
    ("cross_entropy", (X, Y[:, None]), {}),
    ("cross_entropy", (X, Y.float()), {}),
    ("cross_entropy", (X, Q[:, :3]), {}),
    ("cross_entropy", (X, Q), {"ignore_index": 1}),
    ("cross_entropy", (X.int(), Y), {}),
    ("cross_entropy", (torch.tensor(1.0), Y), {}),
    ("cross_entropy", (X, Y), {"weight": torch.ones(3)}),
    ("cross_entropy", (X, Y), {"label_smoothing": 2.0}),
    ("cross_entropy", (X, Y), {"reduction": "average"}),
    ("cross_entropy", (X, Y + 4), {}),
    ("cross_entropy", (X, Y - 1), {}),
    ("cross_entropy", (X.half(), Y + 4), {}),
    ("cross_entropy", (X[:, :0], Y), {}),
    ("binary_cross_entropy_with_logits", (X, Q[:2]), {}),
    ("binary_cross_entropy_with_logits", (X, Q), {"weight": torch.ones(3)}),
    ("binary_cross_entropy_with_logits", (X, Q), {"reduction": "average"}),
    ("binary_cross_entropy_with_logits", (X.int(), Q), {}),
    ("linear_cross_entropy", (X, torch.zeros(3, 4), Y), {}),
    ("linear_cross_entropy", (X, torch.zeros(5, 5), Y[:2]), {}),
    ("linear_cross_entropy", (X, torch.zeros(5, 5).double(), Y), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), SHARED)
def test_pytorchs_errors(name, arguments, options):
    def error_of(module):
        try:
            getattr(module, name)(*arguments, **options)
        except Exception as error:
            return type(error)

    expected = error_of(F)
    assert expected is not None
    assert error_of(xentrs.torch) is expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sample_weight": torch.ones(3)}, ValueError, r"sample_weight has shape \(3,\).*\(4,\)"),
        ({"sample_weight": Y}, TypeError, "sample_weight has dtype torch.int64"),
        ({"softcap": -1.0}, ValueError, "softcap is -1.0"),
        ({"z_loss": float("nan")}, ValueError, "z_loss is nan"),
        ({"denominator": -2.0}, ValueError, "denominator is -2.0"),
        ({"denominator": torch.ones(2)}, ValueError, r"denominator has shape \(2,\)"),
    ],
)
def test_our_errors(options, error, message):
    with pytest.raises(error, match=message):
        xentrs.torch.cross_entropy(X, Y, **options)


def test_binary_errors():
    bce = xentrs.torch.binary_cross_entropy_with_logits
    with pytest.raises(TypeError, match="where has dtype"):
        bce(X, Q, where=Y)
    with pytest.raises(ValueError, match="where has shape"):
        bce(X, Q, where=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="label_smoothing is 3"):
        bce(X, Q, label_smoothing=3)


def test_class_index_out_of_range_in_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the assertion would end this process's use of the GPU")
    from xentrs.torch import _backend

    monkeypatch.setattr(_backend, "FORCED", "triton")
    with pytest.raises(IndexError, match="out of bounds"):
        xentrs.torch.cross_entropy(X, Y + 4)


def test_other_devices():
    with pytest.raises(NotImplementedError, match="'mps'"):
        xentrs.torch._backend.uses_triton(_OnDevice("mps"))


class _OnDevice:
    def __init__(self, name):
        self.device = torch.device(name)
        self.is_cpu = name == "cpu"


def test_deprecated_arguments():
    with pytest.warns(UserWarning, match="reduction='sum'"):
        loss = xentrs.torch.cross_entropy(X, Y, size_average=False)
    assert loss.item() == pytest.approx(F.cross_entropy(X, Y, reduction="sum").item())


def python(script, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_are_lazy():
    """`xentrs` needs no PyTorch, `xentrs.torch` no Triton; what is missing is named."""
    done = python(
        """
        import sys
        import xentrs
        assert "torch" not in sys.modules
        sys.modules["torch"] = None
        try:
            import xentrs.torch
        except ImportError as error:
            print(error)
        del sys.modules["torch"]
        sys.modules["triton"] = None
        import torch
        import xentrs.torch
        loss = xentrs.torch.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))
        xentrs.torch._backend.FORCED = "triton"
        try:
            xentrs.torch.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))
        except ImportError as error:
            print(error)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "xentrs.torch needs PyTorch: pip install xentrs[torch]" in done.stdout
    assert "xentrs.torch needs Triton" in done.stdout


def test_unknown_backend():
    done = python("import xentrs.torch", XENTRS_TORCH_BACKEND="cuda")
    assert "XENTRS_TORCH_BACKEND is 'cuda', but must be 'rust' or 'triton'" in done.stderr
