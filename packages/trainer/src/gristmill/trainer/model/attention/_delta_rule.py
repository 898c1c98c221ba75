"""The gated delta rule with a decay for each channel, in chunks (Kimi Linear, arXiv 2510.26692, eq. 1 and section 3):

    S_t = (I - beta_t k_t k_t') Diag(exp decay_t) S_(t-1) + beta_t k_t v_t'        y_t = S_t' q_t

A position writes u_t = beta_t (v_t - k_t' Diag(exp decay_t) S_(t-1)), what is new about its value. Within a chunk the u
are the solution of a triangular system, and only the state goes from chunk to chunk. A chunk of one position is the
recurrence itself.

No exponent is ever above zero, so nothing overflows however fast channels decay: decays between distant positions are
split at the start of a block in between, those within a block are written out.

B sequences, H heads, S positions, M chunks, C positions of a chunk, N blocks of a chunk, c positions of a block,
d width of keys, e of values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHUNK, BLOCK = 64, 8


def delta_rule(
    q_BHSd: torch.Tensor,
    k_BHSd: torch.Tensor,
    v_BHSe: torch.Tensor,
    decay_BHSd: torch.Tensor,
    beta_BHS: torch.Tensor,
    positions_BS: torch.Tensor,
    state_BHde: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y [B, H, S, e], and the state after the last position, [B, H, d, e].

    decay_BHSd: logarithms, at most 0. positions_BS: in the document, counted from 0, where the state is empty.
    state_BHde: after what came before; None: nothing.
    """
    B, H, S, d = q_BHSd.shape
    C = min(CHUNK, -(-S // BLOCK) * BLOCK)
    over = -S % C  # positions without decay, key or value: they leave the state alone

    def chunks(x_BHSd: torch.Tensor) -> torch.Tensor:
        return F.pad(x_BHSd, (0, 0, 0, over)).unflatten(2, (-1, C))

    q, k, v, beta = chunks(q_BHSd), chunks(k_BHSd), chunks(v_BHSe), chunks(beta_BHS[..., None])  # each BHMC_
    age = chunks(decay_BHSd).cumsum(dim=-2)
    index_C = torch.arange(C, device=q.device)
    goes_on = positions_BS[:, -1:] + torch.arange(1, over + 1, device=q.device)
    place_B1MC = torch.cat((positions_BS, goes_on), dim=1).unflatten(1, (-1, C))[:, None]
    # Documents: what a position sees of its own chunk, whether it sees the state before, what is left of it after.
    apart_CC = index_C[:, None] - index_C
    seen_B1MCC = (apart_CC >= 0) & (apart_CC <= place_B1MC[..., None])
    from_before_B1MC1 = (place_B1MC > index_C)[..., None]
    to_after_B1MC1 = (C - 1 - index_C <= place_B1MC[..., -1:])[..., None]

    q_to_k, k_to_k = _decayed_products(torch.stack((q, k)), k, age)
    q_to_k = q_to_k.masked_fill(~seen_B1MCC, 0)
    k_to_k = k_to_k.masked_fill(~seen_B1MCC | (apart_CC == 0), 0)
    since = age.exp() * from_before_B1MC1
    right = beta * torch.cat((v, k * since), dim=-1)
    system = torch.eye(C, dtype=q.dtype, device=q.device) + beta * k_to_k
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    write, erase = solved.split((v.shape[-1], d), dim=-1)  # u = write - erase @ state
    read, left = q * since, k * (age[..., -1:, :] - age).exp() * to_after_B1MC1

    state = q.new_zeros(B, H, d, v.shape[-1]) if state_BHde is None else state_BHde
    outputs = []
    for m in range(q.shape[2]):
        u_BHCe = write[:, :, m] - erase[:, :, m] @ state
        outputs.append(read[:, :, m] @ state + q_to_k[:, :, m] @ u_BHCe)
        state = since[:, :, m, -1, :, None] * state + left[:, :, m].transpose(-1, -2) @ u_BHCe
    return torch.cat(outputs, dim=2)[:, :, :S], state


def _decayed_products(x_Cd: torch.Tensor, k_Cd: torch.Tensor, age_Cd: torch.Tensor) -> torch.Tensor:
    """[..., C, C]: the sum over channels of x_i k_j exp(age_i - age_j), for j <= i; elsewhere anything finite."""
    N = x_Cd.shape[-2] // BLOCK
    x_Ncd, k_Ncd, age_Ncd = (z.unflatten(-2, (N, BLOCK)) for z in (x_Cd, k_Cd, age_Cd))
    # j in an earlier block: both factors are decays, up to this block's first position and from there.
    first_N1d = age_Ncd[..., :1, :]
    from_j_NCd = k_Cd[..., None, :, :] * (first_N1d - age_Cd[..., None, :, :]).clamp(max=0).exp()
    far_NcC = (x_Ncd * (age_Ncd - first_N1d).exp()) @ from_j_NCd.transpose(-1, -2)
    # j in the same block.
    decay_Nccd = (age_Ncd[..., :, None, :] - age_Ncd[..., None, :, :]).clamp(max=0).exp()
    near_Ncc = (x_Ncd[..., :, None, :] * (k_Ncd[..., None, :, :] * decay_Nccd)).sum(dim=-1)
    same_N1N1 = torch.eye(N, dtype=torch.bool, device=x_Cd.device)[:, None, :, None]
    both_NcNc = torch.where(same_N1N1, near_Ncc[..., None, :], far_NcC.unflatten(-1, (N, BLOCK)))
    return both_NcNc.flatten(-2).flatten(-3, -2)
