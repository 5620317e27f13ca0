// The working memory of training steps and projections: one borrowed block, cut once for the longest sequence and the
// most rows, so that no step allocates. Names follow the formulas in Step; shapes are beside them.

import TamisRuntime

struct StepMemory {
  /// Query rows that one pass over the keys serves.
  static let tile = TargetRows.tile
  /// Runs of row tiles, each with its own sum of key gradients: fixed, so that the bits of a step do not depend on the
  /// number of threads.
  static let groups = 8

  let workers: Int
  let tokens: Int
  let stride: Int
  let rows: Int
  let blocks: Int

  // For all of a step.
  let cosine, sine: UnsafeMutablePointer<Float>  // [tokens, rope / 2]
  let normal: UnsafeMutablePointer<Float>  // [tokens, dim]: (z - mean) / deviation
  let inverse: UnsafeMutablePointer<Float>  // [tokens]: 1 / deviation
  let key: UnsafeMutablePointer<Float>  // [tokens, dim]
  let keyTransposed: UnsafeMutablePointer<Float>  // [dim, stride]
  let keyGradient: UnsafeMutablePointer<Float>  // [groups][tokens, dim]
  let normGradient: UnsafeMutablePointer<Float>  // [blocks of 64 keys][gain, bias]
  let features: UnsafeMutablePointer<Float>  // [rows, features]
  let hidden: UnsafeMutablePointer<Float>  // [rows, width]
  let query, queryGradient: UnsafeMutablePointer<Float>  // [rows, heads * dim]
  let weight, weightGradient: UnsafeMutablePointer<Float>  // [rows, padded heads]
  let loss: UnsafeMutablePointer<Float>  // [rows]

  // For each worker.
  private let workerStart: UnsafeMutablePointer<Float>
  private let workerFloats: Int
  private let targetFloats: Int

  private let scratch: Scratch

  /// `tokens`, `rows`: the most of any step. To be given back with `release`.
  init(
    _ context: Context, _ shape: IndexerShape, tokens: Int, rows: Int, targetFloats: Int, gradients: Bool
  ) throws(TamisError) {
    self.tokens = tokens
    self.rows = rows
    stride = paddedStride(tokens)
    blocks = (tokens &+ KeySide.block &- 1) / KeySide.block
    workers = context.threads
    self.targetFloats = targetFloats
    let tables = try Size.product(tokens, max(shape.rope / 2, 1))
    let keys = try Size.product(tokens, shape.dim)
    let queries = try Size.product(rows, shape.queryWidth)
    let tileScores = try Size.product(StepMemory.tile, shape.heads, stride)
    let backward = gradients ? 1 : 0
    // In the order of the pointers below.
    let sizes = [
      tables, tables, keys, tokens, keys, try Size.product(shape.dim, stride),
      try Size.product(keys, StepMemory.groups * backward), try Size.product(blocks, 2 * shape.dim),
      try Size.product(rows, shape.features), try Size.product(rows, shape.width), queries, queries,
      try Size.product(rows, shape.paddedHeads), try Size.product(rows, shape.paddedHeads), rows,
    ]
    // Scores of a tile, one row of mixed scores, one of masked probabilities, a row to choose from and its indices.
    workerFloats = try Size.sum(tileScores, Size.product(4, stride), targetFloats, Selection.scratchFloats)
    var total = 0
    for size in sizes { total = try Size.sum(total, Size.roundUp(size, to: 16)) }
    let bytes = try Size.product(Size.sum(total, Size.product(workers, workerFloats)), 4)
    scratch = try context.borrowScratch(bytes: bytes)
    var at = scratch.pointer.assumingMemoryBound(to: Float.self)
    var next = sizes.makeIterator()
    func take() -> UnsafeMutablePointer<Float> {
      defer { at += ((next.next() ?? 0) &+ 15) & ~15 }
      return at
    }
    (cosine, sine, normal, inverse) = (take(), take(), take(), take())
    (key, keyTransposed, keyGradient, normGradient) = (take(), take(), take(), take())
    (features, hidden) = (take(), take())
    (query, queryGradient, weight, weightGradient, loss) = (take(), take(), take(), take(), take())
    workerStart = at
  }

  func release(_ context: Context) { context.returnScratch(scratch) }

  /// [tile rows * heads, stride]
  func scores(_ worker: Int) -> UnsafeMutablePointer<Float> { workerStart + worker &* workerFloats }
  /// [stride]: the mixed scores of a row, then their softmax.
  func mixed(_ worker: Int, _ shape: IndexerShape) -> UnsafeMutablePointer<Float> {
    scores(worker) + StepMemory.tile &* shape.heads &* stride
  }
  /// [stride]: the target of a row over the selected set.
  func masked(_ worker: Int, _ shape: IndexerShape) -> UnsafeMutablePointer<Float> { mixed(worker, shape) + stride }
  func target(_ worker: Int, _ shape: IndexerShape) -> UnsafeMutablePointer<Float> { masked(worker, shape) + stride }
  /// Scores [stride + 16], indices [stride + 16], then the kernel's own scratch.
  func selection(_ worker: Int, _ shape: IndexerShape) -> UnsafeMutablePointer<Float> {
    target(worker, shape) + targetFloats
  }
}
