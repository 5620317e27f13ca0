// Byte-pair merging of one piece: the pair of lowest rank first, leftmost among equals, until no pair is left.
// A heap of candidate pairs over a linked list of symbols: O(n log n) for a piece of n bytes.

import TamisRuntime

struct PairMerger: ~Copyable {
  private struct Symbol: BitwiseCopyable {
    var id: Int32
    var previous: Int32
    var next: Int32  // -1: none
  }
  private struct Candidate: BitwiseCopyable {
    var order: UInt64  // rank, then position of the left symbol
    var result: Int32
  }
  private static let gone: Int32 = -1  // id of a symbol that was merged into its left neighbour

  private var symbols: GrowableBuffer<Symbol>
  private var heap: GrowableBuffer<Candidate>

  init(_ context: Context) {
    symbols = GrowableBuffer(context)
    heap = GrowableBuffer(context)
  }

  /// Appends the tokens of `piece`, which has at most Int32.max bytes.
  mutating func encode(
    _ piece: UnsafeBufferPointer<UInt8>, with vocabulary: borrowing Vocabulary, into ids: inout GrowableBuffer<Int32>
  ) throws(TamisError) {
    symbols.truncate(to: 0)
    heap.truncate(to: 0)
    for (position, byte) in piece.enumerated() {
      let id = vocabulary.id(ofByte: byte)
      guard id >= 0 else { throw TamisError(.unsupported, "tokenizer: its vocabulary has no token for byte \(byte)") }
      let here = Int32(truncatingIfNeeded: position)
      try symbols.append(
        Symbol(id: id, previous: here &- 1, next: position &+ 1 < piece.count ? here &+ 1 : -1))
    }
    for position in 0..<symbols.count {
      try consider(Int32(truncatingIfNeeded: position), with: vocabulary)
    }
    while let candidate = pop() { try apply(candidate, with: vocabulary) }
    for symbol in symbols.elements where symbol.id != PairMerger.gone { try ids.append(symbol.id) }
  }

  /// The pair that begins at `position` becomes a candidate where it can merge.
  @inline(__always)
  private mutating func consider(_ position: Int32, with vocabulary: borrowing Vocabulary) throws(TamisError) {
    guard let left = symbols.element(at: Int(position)), let right = symbols.element(at: Int(left.next)),
      let merge = vocabulary.merge(left.id, right.id)
    else { return }
    try push(
      Candidate(order: UInt64(merge.rank) << 32 | UInt64(UInt32(bitPattern: position)), result: merge.result))
  }

  private mutating func apply(_ candidate: Candidate, with vocabulary: borrowing Vocabulary) throws(TamisError) {
    let position = Int32(truncatingIfNeeded: candidate.order & 0xFFFF_FFFF)
    // A candidate is stale when its symbols have since merged into something else.
    guard var left = symbols.element(at: Int(position)), left.id != PairMerger.gone,
      var right = symbols.element(at: Int(left.next)),
      vocabulary.merge(left.id, right.id)?.result == candidate.result
    else { return }
    let rightPosition = Int(left.next)
    left.id = candidate.result
    left.next = right.next
    right.id = PairMerger.gone
    symbols.set(left, at: Int(position))
    symbols.set(right, at: rightPosition)
    if var following = symbols.element(at: Int(left.next)) {
      following.previous = position
      symbols.set(following, at: Int(left.next))
    }
    try consider(left.previous, with: vocabulary)
    try consider(position, with: vocabulary)
  }

  // MARK: a binary heap, smallest order first

  private mutating func push(_ candidate: Candidate) throws(TamisError) {
    var hole = heap.count
    try heap.append(candidate)
    let heap = heap.mutableElements
    while hole > 0 {
      let parent = (hole &- 1) / 2
      guard candidate.order < heap[parent].order else { break }
      heap[hole] = heap[parent]
      hole = parent
    }
    heap[hole] = candidate
  }

  private mutating func pop() -> Candidate? {
    guard let top = heap.element(at: 0), let last = heap.element(at: heap.count &- 1) else { return nil }
    heap.truncate(to: heap.count &- 1)
    let heap = heap.mutableElements
    guard heap.count > 0 else { return top }
    var hole = 0
    while true {
      var child = hole &* 2 &+ 1
      guard child < heap.count else { break }
      if child &+ 1 < heap.count, heap[child &+ 1].order < heap[child].order { child &+= 1 }
      guard heap[child].order < last.order else { break }
      heap[hole] = heap[child]
      hole = child
    }
    heap[hole] = last
    return top
  }
}
