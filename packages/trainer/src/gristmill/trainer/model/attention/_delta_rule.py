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

CHUNK, BLOCK = 32, 8  # near the least CPU time of chunks of 16 to 128 and blocks of 4 to 16 (heads of 64)


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

    q_to_k, k_to_k = _decayed_products(torch.stack((q, k), dim=-3), k, age).unbind(dim=-3)
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
    kept = since[..., -1, :, None]
    by_chunk = (z.unbind(dim=2) for z in (read, q_to_k, write, erase, kept, left.transpose(-1, -2)))
    for read_Cd, q_to_k_CC, write_Ce, erase_Cd, kept_d1, left_dC in zip(*by_chunk):
        u_Ce = write_Ce - erase_Cd @ state
        outputs.append(read_Cd @ state + q_to_k_CC @ u_Ce)
        state = kept_d1 * state + left_dC @ u_Ce
    return torch.cat(outputs, dim=2)[:, :, :S], state


def _decayed_products(x_PCd: torch.Tensor, k_Cd: torch.Tensor, age_Cd: torch.Tensor) -> torch.Tensor:
    """[..., P, C, C]: the sum over channels of x_i k_j exp(age_i - age_j), for j <= i; elsewhere anything finite. P: of
    several x, which share what depends on k alone."""
    P, N = x_PCd.shape[-3], x_PCd.shape[-2] // BLOCK
    x_NPcd = x_PCd.unflatten(-2, (N, BLOCK)).transpose(-4, -3)
    k_Ncd, age_Ncd = k_Cd.unflatten(-2, (N, BLOCK)), age_Cd.unflatten(-2, (N, BLOCK))
    # j in an earlier block: both factors are decays, up to this block's first position and from there.
    first_N1d = age_Ncd[..., :1, :]
    from_j_NCd = k_Cd[..., None, :, :] * (first_N1d - age_Cd[..., None, :, :]).clamp(max=0).exp()
    to_i_NPcd = x_NPcd * (age_Ncd - first_N1d).exp()[..., None, :, :]
    far_NPcC = (to_i_NPcd.flatten(-3, -2) @ from_j_NCd.transpose(-1, -2)).unflatten(-2, (P, BLOCK))
    # j in the same block.
    k_Nccd = k_Ncd[..., None, :, :] * (age_Ncd[..., :, None, :] - age_Ncd[..., None, :, :]).clamp(max=0).exp()
    near_NPcc = (k_Nccd @ x_NPcd.movedim(-3, -1)).movedim(-1, -3)
    same_N11N1 = torch.eye(N, dtype=torch.bool, device=x_PCd.device)[:, None, None, :, None]
    both_NPcNc = torch.where(same_N11N1, near_NPcc[..., None, :], far_NPcC.unflatten(-1, (N, BLOCK)))
    return both_NPcNc.transpose(-5, -4).flatten(-2).flatten(-3, -2)
