// A lightning indexer with its parameters in float: made at random, read from or written to plain tensors, and fitted.
// It owns the parameters and the rotary frequencies; what it computes is in Projections, how it learns in Fit. One
// thread at a time: a second call meanwhile is refused.

import Glibc
import TamisKernels
package import TamisOperators
package import TamisRuntime

package final class LearnedIndexer: @unchecked Sendable {
  package let context: Context
  package let shape: IndexerShape
  /// [rope / 2]: radians for each position.
  let frequencies: [Float]
  /// Replaced as a whole when a fit succeeds.
  private(set) var parameters: Floats
  /// Nothing was learnt or read yet.
  private(set) var isRandom = true
  let busy = BusyFlag()

  /// Random queries and keys of unit scale, a normalisation that does nothing yet, small head weights.
  /// `frequencies`: as many as half of shape.rope.
  package init(
    _ context: Context, _ shape: IndexerShape, frequencies: [Float], seed: UInt64
  ) throws(TamisError) {
    guard frequencies.count == shape.rope / 2, frequencies.allSatisfy({ $0.isFinite }) else {
      throw TamisError(.argument, "indexer: rope_frequencies are not \(shape.rope / 2) finite numbers")
    }
    self.context = context
    self.shape = shape
    self.frequencies = frequencies
    parameters = try Floats(context, shape.parameters, "indexer")
    var random = SeededRandom(seed: seed)
    let start = parameters.start
    fill(start + shape.queryAt, shape.features &* shape.queryWidth, 1 / Float(shape.features).squareRoot(), &random)
    fill(start + shape.keyAt, shape.width &* shape.dim, 1 / Float(shape.width).squareRoot(), &random)
    (start + shape.gainAt).update(repeating: 1, count: shape.dim)
    (start + shape.biasAt).update(repeating: 0, count: shape.dim)
    for i in 0..<shape.width {
      let row = start + (shape.weightAt &+ i &* shape.paddedHeads)
      fill(row, shape.heads, 0.02, &random)
      (row + shape.heads).update(repeating: 0, count: shape.paddedHeads &- shape.heads)
    }
  }

  /// base^(-2i / rope), the frequencies of rotary embeddings without scaling.
  package static func frequencies(rope: Int, base: Float) throws(TamisError) -> [Float] {
    guard base.isFinite, base > 1 else {
      throw TamisError(.argument, "indexer: rope_base is \(base), expected more than 1")
    }
    guard rope >= 0, rope <= 512 else { throw TamisError(.argument, "indexer: rope_dim is \(rope)") }
    return (0..<rope / 2).map { Float(pow(Double(base), -2 * Double($0) / Double(rope))) }
  }

  func replace(_ learnt: Floats) {
    parameters = learnt
    isRandom = false
  }

  /// One tensor in the checkpoint's layout; `out` F32 of its shape.
  package func read(_ which: IndexerTensor, out: Tensor) throws(TamisError) {
    try busy.enter("indexer")
    defer { busy.leave() }
    try check(which, out)
    let (at, stride) = which.place(shape)
    forEach(which, out) { tensor, output, input in
      tensor.pointee = self.parameters.start[at &+ input &* stride &+ output]
    }
  }

  /// The same, from the caller. All finite, or refused and nothing changed.
  package func write(_ tensors: [(IndexerTensor, Tensor)]) throws(TamisError) {
    try busy.enter("indexer")
    defer { busy.leave() }
    for (which, tensor) in tensors {
      try check(which, tensor)
      var finite = true
      forEach(which, tensor) { value, _, _ in finite = finite && value.pointee.isFinite }
      guard finite else { throw TamisError(.argument, "\(which.name): contains NaN or infinity") }
    }
    isRandom = false
    for (which, tensor) in tensors {
      let (at, stride) = which.place(shape)
      forEach(which, tensor) { value, output, input in
        self.parameters.start[at &+ input &* stride &+ output] = value.pointee
      }
    }
  }

  private func check(_ which: IndexerTensor, _ tensor: Tensor) throws(TamisError) {
    let expected = which.dimensions(shape)
    try require(tensor, which.name, rank: expected.count)
    try require(tensor, which.name, .f32)
    for (axis, size) in expected.enumerated() { try require(tensor, which.name, axis: axis, is: size) }
  }

  /// Calls body with each element of a tensor in the checkpoint's layout, its output and its input.
  private func forEach(
    _ which: IndexerTensor, _ tensor: Tensor, _ body: (UnsafeMutablePointer<Float>, Int, Int) -> Void
  ) {
    if tensor.rank == 1 {
      let values = tensor.data.assumingMemoryBound(to: Float.self)
      for output in 0..<max(tensor.shape[0], 0) { body(values + output, output, 0) }
      return
    }
    for output in 0..<max(tensor.shape[0], 0) {
      let row = tensor.row(output).assumingMemoryBound(to: Float.self)
      for input in 0..<max(tensor.shape[1], 0) { body(row + input, output, input) }
    }
  }
}

private func fill(_ to: UnsafeMutablePointer<Float>, _ count: Int, _ deviation: Float, _ random: inout SeededRandom) {
  for i in 0..<max(count, 0) { to[i] = deviation * random.normal() }
}
