"""Our model as lm-evaluation-harness asks it: likelihoods of continuations and of texts, and answers up to a mark.

Every text is read as in training: after the token that begins a document, and in a chat template's form with what
people wrote as text. B rows, S positions, D width, N tokens that are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gristmill.base.progress import Progress
from gristmill.shards.importers.conversation import Turn
from gristmill.trainer.evaluation.evaluate import ROWS
from gristmill.trainer.generate import sample
from gristmill.trainer.model.segments import from_starts
from gristmill.trainer.run_folder import TrainedModel

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from tokenizers import Tokenizer

    from gristmill.shards.importers.chat_template import ChatTemplate

MOST_TOKENS = 256  # of an answer, where a task does not say; the library's own number
LIKELIEST = 50  # that an answer is drawn from, where a task wants it drawn

Request = tuple[Any, list[int], list[int]]  # what it is of; tokens before; tokens to score


class HarnessModel(TemplateLM):
    def __init__(self, trained: TrainedModel, tokenizer: Tokenizer, form: ChatTemplate | None = None) -> None:
        super().__init__()
        self._trained, self._text, self._form = trained, tokenizer, form
        self._device = trained.model.embedding_VD.device
        self._asked: dict[str, list[int]] = {}  # questions that the template wrote, as its tokens
        self.cut = 0  # requests that the window had no room for

    @property
    def eot_token_id(self) -> int:
        return self._trained.eos

    @property
    def prefix_token_id(self) -> int:
        return self._trained.bos

    @property
    def tokenizer_name(self) -> str:
        """For caches of requests, which are not used."""
        return self._trained.run["tokenizer"]["name"]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return "" if self._form is None else self._form.recipe["template_sha256"]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The library knows texts only: the tokens, which tell a control token from its name, are kept for them.
        Without a generation prompt, the last message is how the answer begins."""
        assert self._form is not None, "--chat gives one"
        turns = [Turn(message["role"], message["content"], learnt=False) for message in chat_history]
        begun = [] if add_generation_prompt else self._form.content(turns.pop().content)
        text = self._form.text(chat_history, add_generation_prompt)
        asked = self._form.prompt(turns)
        self._asked[text] = [*self._before(asked), *asked, *begun]
        return text

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self._form is None or context not in self._asked:
            return super()._encode_pair(context, continuation)
        return self._asked[context], self._form.content(continuation)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
        if string in self._asked:
            return self._asked[string]
        ids = self._text.encode(string, add_special_tokens=False).ids
        return ids if add_special_tokens is False else [*self._before(ids), *ids]

    def _before(self, ids: list[int]) -> list[int]:
        """What begins a document, unless they do."""
        return [] if ids[:1] == [self._trained.bos] else [self._trained.bos]

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Sequence[Request], **_kwargs: Any) -> list[tuple[float, bool]]:
        """(log-likelihood of the tokens to score, whether each was the likeliest), in the order of the requests."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        answers: dict[int, tuple[float, bool]] = {}
        with Progress("score", total=len(requests), unit="continuations") as progress:
            for start in range(0, len(order), ROWS):
                chosen = order[start : start + ROWS]
                answers |= zip(chosen, self._score([requests[i][1:] for i in chosen]))
                progress.update(len(answers))
        return [answers[i] for i in range(len(requests))]

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        window, model = self._trained.sequence, self._trained.model
        rows = [before + scored for before, scored in pairs]
        self.cut += sum(len(row) > window + 1 for row in rows)
        rows = [row[-window - 1 :] for row in rows]  # the latest, where the window is too short
        width = max(len(row) for row in rows) - 1
        inputs_BS = torch.zeros(len(rows), width, dtype=torch.long)
        starts_BS = torch.zeros(len(rows), width, dtype=torch.bool)
        places: list[tuple[int, int]] = []  # of the positions that predict a token to score
        counts = [min(len(scored), len(row) - 1) for (_before, scored), row in zip(pairs, rows)]
        for index, (row, count) in enumerate(zip(rows, counts)):
            length = len(row) - 1
            inputs_BS[index, :length] = torch.tensor(row[:-1])
            starts_BS[index, 0] = True
            if length < width:
                starts_BS[index, length] = True  # what fills the row up is a segment of its own
            places += [(index, place) for place in range(length - count, length)]
        targets_N = torch.tensor([token for row, count in zip(rows, counts) for token in row[len(row) - count :]])
        x_BSD, _ = model(inputs_BS.to(self._device), from_starts(starts_BS.to(self._device)))
        row_N, place_N = torch.tensor(places, device=self._device).T
        logits_NV = model.precision.linear(x_BSD[row_N, place_N], model.output_VD).float().cpu()
        likelihood_N = logits_NV.log_softmax(dim=-1).gather(1, targets_N[:, None]).squeeze(1)
        likeliest_N = logits_NV.argmax(dim=-1) == targets_N
        parts = zip(likelihood_N.double().split(counts), likeliest_N.split(counts))
        return [(float(likelihood.sum()), bool(likeliest.all())) for likelihood, likeliest in parts]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts: every token once, in windows."""
        windows = [
            [make_disjoint_window(pair) for pair in get_rolling_token_windows(
                self.tok_encode(request.args[0], add_special_tokens=False), self._trained.bos, self._trained.sequence, 1
            )]
            for request in requests
        ]  # fmt: skip
        scored = iter(self._loglikelihood_tokens([(None, *pair) for pairs in windows for pair in pairs]))
        return [sum(next(scored)[0] for _ in pairs) for pairs in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of the task's marks."""
        answers = []
        with Progress("answer", total=len(requests), unit="questions") as progress:
            for request in requests:
                answers.append(self._answer(*request.args))
                progress.update(len(answers))
        return answers

    def _answer(self, context: str, wanted: dict[str, Any]) -> str:
        trained = self._trained
        told = [wanted[name] for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if wanted.get(name)]
        most = told[0] if told else MOST_TOKENS
        temperature = wanted.get("temperature", 1.0) if wanted.get("do_sample") else 0.0
        whole = self.tok_encode(context)
        before = whole[-trained.sequence :]
        self.cut += before != whole
        ids = sample(trained.model, before, most, trained.sequence, trained.eos, temperature, LIKELIEST, seed=0)
        answer = self._text.decode(ids[len(before) :], skip_special_tokens=True)
        until = wanted.get("until") or []
        for mark in [until] if isinstance(until, str) else until:
            answer = answer.partition(mark)[0] if mark else answer
        return answer
