"""The fold ``cluster``: the first calls of a tree see answers that are alike, wherever these stand.

Once all branches have ended, the answers are read once, in the order of the input, into a file without a
name. In memory are the sketches of clusters (fanout.policy.clusters), and a few numbers for each answer. The
nodes are then written as those of any tree are, and the levels above them are those of a tree.

A process that goes on after another one finds the same clusters. Nodes say which branches they have, and
those that are in a node are left out of all that are still to be written: so each is in one node.
"""

from __future__ import annotations

from array import array
from collections import Counter
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec import structs

from fanout.aggregators import Node, Part, ScatteredTallies, Tally, nodes_of, part_tokens
from fanout.core.errors import SpecError
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind
from fanout.policy.clusters import Clusters, Vocabulary, WordIndex, shared_prompts
from fanout.policy.postings import Sketches
from fanout.policy.vectors import LEAST_ALIKE_VECTORS, VectorIndex, directions
from fanout.retrieval.words import words_of
from fanout.runs.token_counts import packing_ratio, reduce_room
from fanout.system.external_sort import Scratch
from workers.reduce.embedding import RunStoppedError, embedded
from workers.reduce.frontier import leaf_of, node_chunk
from workers.reduce.items import branches, goes_on
from workers.reduce.room_above import with_room_above
from workers.reduce.writing import MORE_SHARDS, SHOWN_PARTS, StageWriter, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self

    from fanout.core.records import Chunk
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.policy.clusters import Index, Sketch
    from workers.context.worker_context import WorkerContext

    Embed = Callable[[Iterable[str]], Iterator[array[float]]]

__all__ = ["prompts_of", "words_of_part", "write_clusters"]

# The column of a node that says which branches it has: each index less the one before.
_BRANCHES = "branches"
# After so many answers that are read, or compared, whether the run goes on.
_LOOK_EVERY = 2_000
_LOOK_EVERY_COMPARED = 200
# Numbers of answers, branches, clusters and tokens: 4 bytes each, as there may be millions.
_NUMBERS = "I"

_Sketch = TypeVar("_Sketch")

_encode = msgspec.msgpack.Encoder().encode
_part = msgspec.msgpack.Decoder(Part).decode


def write_clusters(context: WorkerContext, run: RunRecord, spec: RunSpec, reduce: Reduce) -> None:
    """Write the first nodes of a tree, whose branches have all ended.

    Where the stages of other reduces follow, a node without a call keeps why there is none.

    Raises:
        SpecError: The job leaves no room for answers, or they have no vectors; there is no other reduce with
            calls.
    """
    target = StageId(run.run_id, run.base_stage + 1)
    writer = StageWriter(context, target, reduce, more_shards=MORE_SHARDS)
    nodes = _Nodes(context, run, spec, reduce, target)
    try:
        write_all(writer, nodes.chunks)
    except SpecError as error:
        if len(spec.called_reductions) == 1:
            raise
        write_all(writer, partial(nodes.without_call, str(error)))


class _Nodes:
    """The nodes of the clusters of a run."""

    def __init__(
        self,
        context: WorkerContext,
        run: RunRecord,
        spec: RunSpec,
        reduce: Reduce,
        target: StageId,
    ) -> None:
        self._context = context
        self._store = context.connections.store
        self._run = run
        self._run_id = run.run_id
        self._spec = spec
        self._reduce = reduce
        self._target = target
        self._compared = 0

    def chunks(self, done: int) -> Iterator[Chunk]:
        """Yield the nodes that are not written yet, as chunks; so many are."""
        with _Answers() as answers:
            if not self._is_read(answers):
                return
            ratio = packing_ratio(
                self._store, self._run_id, self._spec, self._reduce, answers.first_texts()
            )
            room = reduce_room(self._spec, self._reduce, ratio)
            if not goes_on(self._context, self._run):
                return
            written = self._written(done)
            if done and all(map(written.__getitem__, answers.indices)):
                # The task is a copy: nothing is left for which vectors would be made again.
                return
            try:
                found = clustered(answers, room, self._look, self._embed)
            except RunStoppedError:
                return
            answers.end_comparing()
            is_root = not done and answers.tokens <= room
            for position, (node, indices) in enumerate(
                _nodes(
                    answers,
                    found,
                    written,
                    room_tokens=room,
                    bytes_per_token=ratio,
                    cites=self._spec.sources,
                ),
                done,
            ):
                chunk = self._chunk(node, position, indices)
                yield with_room_above(
                    chunk, self._spec, self._reduce, room_tokens=room, is_root=is_root
                )

    def _look(self) -> None:
        """See now and then whether the run goes on.

        Raises:
            RunStoppedError: It does not.
        """
        is_due = self._compared % _LOOK_EVERY_COMPARED == 0
        self._compared += 1
        if is_due and not goes_on(self._context, self._run):
            raise RunStoppedError

    def without_call(self, problem: str, done: int) -> Iterator[Chunk]:
        """Yield the node of the branches that are in no other, of ``done`` ones, and why it makes no call."""
        indices: list[int] = []
        tallies, scattered = Tally(), ScatteredTallies()
        written = self._written(done)
        for chunk, outcome in branches(self._context, StageId(self._run_id, 0)):
            if not written[outcome.index]:
                part = leaf_of(self._spec, self._reduce, chunk, outcome)
                tallies = Tally.total([tallies, scattered.of(part.tally)])
                indices.append(outcome.index)
        if indices:
            lost = tallies.without_answers(ErrorKind.INTERNAL)
            none = Part(group="", text="", count=0, failed=lost.branches)
            node = Node(parts=[none], taken=len(indices), key=0, tally=lost)
            yield self._chunk(node, done, indices, problem)

    @property
    def _embed(self) -> Embed | None:
        if self._spec.embed is None:
            return None
        return partial(
            embedded, self._context, self._spec, goes_on=partial(goes_on, self._context, self._run)
        )

    def _is_read(self, answers: _Answers) -> bool:
        """Take in all branches; return False if the run is over meanwhile, or is begun again."""
        scattered = ScatteredTallies()
        for number, (chunk, outcome) in enumerate(
            branches(self._context, StageId(self._run_id, 0))
        ):
            if number % _LOOK_EVERY == 0 and not goes_on(self._context, self._run):
                return False
            part = leaf_of(self._spec, self._reduce, chunk, outcome)
            part = structs.replace(part, tally=scattered.of(part.tally))
            answers.add(outcome.index, part)
        return True

    def _written(self, done: int) -> bytearray:
        """Return, for each branch, whether one of the written nodes has it; ``done`` are written."""
        found = bytearray(self._store.stage(StageId(self._run_id, 0)).total)
        shards = self._store.shards_of(self._target, reduce=self._reduce.name) if done else ()
        for number in shards:
            for chunk in self._store.shard(self._target.shard(number)).chunks:
                gaps = str(chunk.columns[_BRANCHES]).split(",")
                for index in accumulate(map(int, gaps)):
                    found[index] = True
        return found

    def _chunk(
        self, node: Node, position: int, indices: list[int], problem: str | None = None
    ) -> Chunk:
        cites = self._spec.sources
        chunk = node_chunk(
            node, self._reduce, group="", position=position, level=0, cites=cites, problem=problem
        )
        gaps = (after - before for before, after in pairwise([0, *sorted(indices)]))
        columns = {**chunk.columns, _BRANCHES: ",".join(map(str, gaps))}
        return structs.replace(chunk, columns=columns)


class _Answers:
    """The branches of a run, in the order of the input: their parts are in a file, the rest in memory."""

    def __init__(self) -> None:
        self._pile = Scratch().pile()
        self._ends = array("Q", [0])
        self.indices = array(_NUMBERS)
        self.sizes = array(_NUMBERS)
        self.tokens = 0
        # Those without an answer are one part.
        self.failed_indices = array(_NUMBERS)
        self.failed = Tally()
        self.vocabulary = Vocabulary()

    def add(self, index: int, part: Part) -> None:
        """Take a branch."""
        if not part.text:
            self.failed_indices.append(index)
            self.failed = Tally.total([self.failed, part.tally])
            return
        self._pile.add(_encode(part))
        self._ends.append(self._pile.size)
        self.indices.append(index)
        size = part_tokens(part)
        self.sizes.append(size)
        self.tokens += size
        self.vocabulary.add(words_of_part(part))

    def end_comparing(self) -> None:
        """Give back the memory of what only the search for clusters needs."""
        self.sizes = array(_NUMBERS)
        self.vocabulary = Vocabulary()

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, number: int) -> Part:
        """Return the part of an answer."""
        start, end = self._ends[number : number + 2]
        return _part(b"".join(self._pile.read(start, end)))

    def first_texts(self) -> Iterator[str]:
        """Yield the texts of the first answers."""
        return (self.part(number).text for number in range(min(len(self), SHOWN_PARTS)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._pile.close()


def _said(part: Part) -> str:
    # The first line says where the answer is from.
    return part.text.partition("\n")[2]


def words_of_part(part: Part) -> Iterator[str]:
    """Return the words by which an answer is compared."""
    return words_of(_said(part))


def clustered(
    answers: _Answers,
    room_tokens: int,
    look: Callable[[], None],
    embed: Embed | None = None,
) -> list[array[int]]:
    """Return the answers of each prompt, by their numbers, those that are alike next to each other.

    An answer, or cluster, may be longer than a prompt.

    Args:
        answers: The answers.
        room_tokens: The tokens that fit a prompt.
        look: See ``prompts_of``.
        embed: Makes vectors of texts, by which answers are compared; None compares their words.
    """
    if answers.tokens <= room_tokens:
        return [array(_NUMBERS, range(len(answers)))]
    parts = map(answers.part, range(len(answers)))
    if embed is None:
        sketches = (answers.vocabulary.sketch(words_of_part(part)) for part in parts)
        by_words: Clusters[Sketch] = Clusters(WordIndex(), Sketches([{}]))
        return prompts_of(answers.sizes, sketches, by_words, WordIndex(), room_tokens, look)
    vectors = directions(embed(map(_said, parts)))
    clusters = Clusters(VectorIndex(), [array("f")], least_alike=LEAST_ALIKE_VECTORS)
    return prompts_of(answers.sizes, vectors, clusters, VectorIndex(), room_tokens, look)


def prompts_of(
    tokens: Sequence[int],
    sketches: Iterable[_Sketch],
    clusters: Clusters[_Sketch],
    index: Index[_Sketch],
    room_tokens: int,
    look: Callable[[], None],
) -> list[array[int]]:
    """Return the answers of each prompt, by their numbers.

    Args:
        tokens: How many tokens of a prompt each answer takes.
        sketches: Their sketches, in order.
        clusters: Gives them clusters; it can give no more after that.
        index: Finds clusters that are alike; an empty one.
        room_tokens: The tokens that fit a prompt.
        look: Is called after each step of a few milliseconds; what it raises ends them.
    """
    numbers = array(_NUMBERS)
    sizes: Counter[int] = Counter()
    for number, sketch in enumerate(sketches):
        cluster = clusters.add(sketch)
        numbers.append(cluster)
        sizes[cluster] += tokens[number]
        look()
    leaders = clusters.finish()
    by_cluster = [sizes[cluster] for cluster in range(len(leaders))]
    prompts = shared_prompts(by_cluster, _looking(leaders, look), index, room=room_tokens)
    members = [array(_NUMBERS) for _ in by_cluster]
    for number, cluster in enumerate(numbers):
        members[cluster].append(number)
    del numbers
    found = [array(_NUMBERS) for _ in range(max(prompts) + 1)]
    for cluster, prompt in enumerate(prompts):
        found[prompt].extend(members[cluster])
        # There may be millions.
        members[cluster] = array(_NUMBERS)
    return [some for some in found if some]


def _looking(leaders: Iterable[_Sketch], look: Callable[[], None]) -> Iterator[_Sketch]:
    for leader in leaders:
        look()
        yield leader


def _nodes(
    answers: _Answers,
    prompts: list[array[int]],
    written: bytearray,
    *,
    room_tokens: int,
    bytes_per_token: float,
    cites: bool,
) -> Iterator[tuple[Node, list[int]]]:
    """Yield the nodes of the answers that are in none yet, each with the indices of its branches.

    The answers that are written are taken out of ``prompts``.
    """
    for at, some in enumerate(prompts):
        left = (one for one in some if not written[answers.indices[one]])
        prompts[at] = array(_NUMBERS, left)
    prompts[:] = filter(None, prompts)
    for at, some in enumerate(prompts, 1):
        taken: list[list[int]] = []
        parts = _parts(answers, some, taken, is_last=at == len(prompts))
        for node in nodes_of(
            parts, room_tokens=room_tokens, level=0, bytes_per_token=bytes_per_token, cites=cites
        ):
            yield node, list(chain.from_iterable(taken[: node.taken]))
            del taken[: node.taken]


def _parts(
    answers: _Answers, numbers: array[int], taken: list[list[int]], *, is_last: bool
) -> Iterator[Part]:
    """Yield the parts of a prompt; ``taken`` gets the indices of the branches of each.

    The last prompt has those without an answer.
    """
    for number in numbers:
        taken.append([answers.indices[number]])
        yield answers.part(number)
    if is_last and answers.failed_indices:
        taken.append(list(answers.failed_indices))
        tally = answers.failed
        yield Part(group="", text="", count=0, failed=tally.branches, tally=tally)
