// An indexer in use: queries, head weights and keys for positions of a sequence, in float, ready for index_scores and
// select. It refuses positions that are negative.

package import TamisOperators
package import TamisRuntime

extension LearnedIndexer {
  /// hidden [n, width] and features [n, features] (nil: hidden) of n positions, `positions` or 0, 1, ...; each output
  /// F32 or nil: q [n, heads, dim], w [n, heads] (scaled by heads^-1/2 dim^-1/2), key [n, dim].
  package func project(
    hidden: Tensor, features: Tensor?, positions: UnsafePointer<Int32>?, q: Tensor?, w: Tensor?, key: Tensor?
  ) throws(TamisError) {
    try busy.enter("indexer")
    defer { busy.leave() }
    let n = hidden.shape[0]
    try check(hidden: hidden, features: features, q: q, w: w, key: key)
    var last = max(n &- 1, 0)
    for i in 0..<(positions == nil ? 0 : max(n, 0)) {
      let position = Int(positions?[i] ?? 0)
      guard position >= 0, position < Capture.tokenLimit else {
        throw TamisError(.argument, "positions[\(i)] is \(position), expected 0 to \(Capture.tokenLimit &- 1)")
      }
      last = max(last, position)
    }
    let block = min(n, KeySide.block)
    let half = shape.rope / 2
    // One turn at a time: a table of all positions up to the last would be larger than the outputs.
    let floats = try Size.sum(
      Size.product(block, max(shape.width, shape.features)), Size.product(2, half),
      Size.product(block, max(shape.queryWidth, shape.paddedHeads, shape.dim)), 64)
    let scratch = try context.borrowScratch(bytes: Size.product(floats, 4))
    defer { context.returnScratch(scratch) }
    let memory = scratch.pointer.assumingMemoryBound(to: Float.self)
    let token = context.beginCall()
    try context.run { () throws(TamisError) in
      var first = 0
      while first < n {
        try context.checkCancelled(token)
        let work = ProjectionBlock(
          indexer: self, first: first, count: min(block, n &- first), positions: positions, input: memory,
          turn: memory + block &* max(shape.width, shape.features),
          output: memory + (block &* max(shape.width, shape.features) &+ 2 &* half))
        if let q { work.queries(features ?? hidden, q) }
        if let w { work.weights(hidden, w) }
        if let key { work.keys(hidden, key) }
        first &+= block
      }
    }
  }

  private func check(
    hidden: Tensor, features: Tensor?, q: Tensor?, w: Tensor?, key: Tensor?
  ) throws(TamisError) {
    try require(hidden, "x", rank: 2)
    try require(hidden, "x", .f32, .f16, .bf16)
    try require(hidden, "x", axis: 1, is: shape.width)
    if let features {
      try require(features, "r", rank: 2)
      try require(features, "r", .f32, .f16, .bf16)
      try require(features, "r", axis: 0, is: hidden.shape[0])
      try require(features, "r", axis: 1, is: shape.features)
    } else if q != nil, shape.features != shape.width {
      throw TamisError(.argument, "r is NULL, and the indexer's \(shape.features) features are not x's \(shape.width)")
    }
    for (tensor, name, sizes) in [
      (q, "q" as StaticString, [shape.heads, shape.dim]), (w, "w", [shape.heads]), (key, "key", [shape.dim]),
    ] {
      guard let tensor else { continue }
      try require(tensor, name, rank: sizes.count + 1)
      try require(tensor, name, .f32)
      try require(tensor, name, axis: 0, is: hidden.shape[0])
      for (axis, size) in sizes.enumerated() { try require(tensor, name, axis: axis + 1, is: size) }
      try requireApart(tensor, name, from: (hidden, "x"), (features, "r"))
    }
    if let q { try requireApart(q, "q", from: (w, "w"), (key, "key")) }
    if let w { try requireApart(w, "w", from: (key, "key")) }
  }
}

/// Up to 64 rows of a projection.
private struct ProjectionBlock {
  let indexer: LearnedIndexer
  let first: Int
  let count: Int
  let positions: UnsafePointer<Int32>?
  let input: UnsafeMutablePointer<Float>  // [count, width or features]
  let turn: UnsafeMutablePointer<Float>  // [cosines, sines] of one position
  let output: UnsafeMutablePointer<Float>

  private var shape: IndexerShape { indexer.shape }

  private func load(_ tensor: Tensor) {
    for i in 0..<max(count, 0) {
      loadFloats(
        tensor.dtype, tensor.row(first &+ i), nil, 1, tensor.columns, to: input + i &* tensor.columns,
        indexer.context.kernels)
    }
  }

  private func rotary(_ i: Int) -> RotaryTable {
    let position = positions.map { Int($0[first &+ i]) } ?? first &+ i
    return RotaryTable.fill(turn, position: position, indexer.frequencies)
  }

  func queries(_ features: Tensor, _ q: Tensor) {
    load(features)
    let width = shape.queryWidth
    accumulate(
      indexer.context.kernels, input, (shape.features, 1), indexer.parameters.start + shape.queryAt, width, rows: count,
      width, shape.features, add: false, output, width)
    for i in 0..<max(count, 0) {
      let rotary = rotary(i)
      for h in 0..<shape.heads {
        let head = output + (i &* width &+ h &* shape.dim)
        rotary.turn(head, position: 0, sign: 1)
        (q.row(first &+ i) + h &* q.stride[1]).copyMemory(from: head, byteCount: shape.dim &* 4)
      }
    }
  }

  func weights(_ hidden: Tensor, _ w: Tensor) {
    load(hidden)
    let padded = shape.paddedHeads
    accumulate(
      indexer.context.kernels, input, (shape.width, 1), indexer.parameters.start + shape.weightAt, padded, rows: count,
      padded, shape.width, add: false, output, padded)
    for i in 0..<max(count, 0) {
      let row = w.row(first &+ i).assumingMemoryBound(to: Float.self)
      for h in 0..<shape.heads { row[h] = output[i &* padded &+ h] * shape.weightScale }
    }
  }

  func keys(_ hidden: Tensor, _ key: Tensor) {
    load(hidden)
    let parameters = indexer.parameters.start
    accumulate(
      indexer.context.kernels, input, (shape.width, 1), parameters + shape.keyAt, shape.dim, rows: count, shape.dim,
      shape.width, add: false, output, shape.dim)
    for i in 0..<max(count, 0) {
      let one = output + i &* shape.dim
      let (mean, inverse) = KeySide.moments(one, shape.dim)
      for d in 0..<shape.dim {
        one[d] = (one[d] - mean) * inverse * parameters[shape.gainAt &+ d] + parameters[shape.biasAt &+ d]
      }
      rotary(i).turn(one, position: 0, sign: 1)
      key.row(first &+ i).copyMemory(from: one, byteCount: shape.dim &* 4)
    }
  }
}
