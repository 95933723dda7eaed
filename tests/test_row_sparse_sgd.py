"""SGD on sampled rows alone, against a literal loop and against torch's own SGD."""

import pytest
import torch
from mmpretrain.registry import OPTIMIZERS

from facemae_mm.models import PartialFCHead


def sgd(parameters, **kwargs):
    return OPTIMIZERS.build(dict(type='RowSparseSGD', params=parameters, **kwargs))


def sparse(rows, values, size):
    return torch.sparse_coo_tensor([rows], values, size, check_invariants=True)


@pytest.mark.parametrize('nesterov', [False, True])
def test_rows_follow_the_literal_rule_and_others_stay(nesterov):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 3))
    dense = torch.nn.Parameter(torch.randn(2))
    optimizer = sgd([weight, dense], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    expected, momentum = weight.detach().clone(), torch.zeros(5, 3)
    for rows in ([0, 3], [3, 4], [3, 3]):  # the last one adds up
        values = torch.randn(2, 3)
        weight.grad, dense.grad = sparse(rows, values, (5, 3)), torch.ones(2)
        optimizer.step()
        assert weight.grad.is_sparse
        for row in set(rows):
            change = sum(v for r, v in zip(rows, values) if r == row) + 0.01 * expected[row]
            momentum[row] = 0.9 * momentum[row] + change
            expected[row] -= 0.1 * (change + 0.9 * momentum[row] if nesterov else momentum[row])
        torch.testing.assert_close(weight.data, expected)
    torch.testing.assert_close(optimizer.state[weight]['momentum_buffer'], momentum)


def test_with_every_row_it_is_torchs_sgd():
    results = []
    for kind in ('RowSparseSGD', 'SGD'):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5, 3))
        kwargs = dict(lr=0.1, momentum=0.9, weight_decay=0.01)
        optimizer = OPTIMIZERS.build(dict(type=kind, params=[weight], **kwargs))
        for _ in range(3):
            gradient = torch.randn(5, 3)
            weight.grad = gradient if kind == 'SGD' else sparse(list(range(5)), gradient, (5, 3))
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(*results)


def test_partial_fc_leaves_what_it_did_not_draw():
    head = PartialFCHead(50, 8, sample_rate=0.2, sparse=True)
    optimizer = sgd(head.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = head.weight.detach().clone()
    torch.manual_seed(0)
    embedding, labels = torch.randn(3, 8), torch.tensor([1, 7, 49])
    head.margin_loss(embedding, labels, rows=head.sample(labels), sparse=True).backward()
    rows = head.weight.grad._indices()[0]
    optimizer.step()
    changed = (head.weight != before).any(1).nonzero()[:, 0]
    assert torch.equal(changed, rows) and len(rows) == 10
