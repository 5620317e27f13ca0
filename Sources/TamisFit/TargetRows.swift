// The distribution an indexer learns: the host's attention of a few rows, averaged over heads. Probabilities that were
// captured are only looked up; from captured queries and keys they are computed for sixteen rows at a time and never
// stored whole. It refuses nothing: a capture was checked when it was made.

import Glibc
import TamisKernels
import TamisRuntime

enum TargetRows {
  /// Rows computed at a time.
  static let tile = 16

  /// Floats of scratch that `compute` needs for a sequence: its result, one head's scores, and the rows' queries.
  static func scratch(_ sequence: CapturedSequence) throws(TamisError) -> Int {
    guard case .heads(let host) = sequence.attention else { return 0 }
    return try Size.sum(
      Size.product(2 * tile, paddedStride(sequence.tokens)),
      Size.roundUp(Size.product(tile, host.heads, host.dim), to: 16))
  }

  /// p of `count` (at most tile) rows of the sequence, `row(i)` the i-th, for `pointer` to find.
  static func compute(
    _ kernels: UnsafePointer<tk_table>, _ sequence: CapturedSequence, count: Int, scratch: UnsafeMutablePointer<Float>,
    row: (Int) -> Int
  ) {
    guard case .heads(let host) = sequence.attention else { return }
    let stride = paddedStride(sequence.tokens)
    let scores = scratch + tile &* stride
    let queries = scores + tile &* stride
    let width = host.heads &* host.dim
    var longest = 0
    for i in 0..<max(count, 0) {
      (queries + i &* width).update(from: host.queries.start + row(i) &* width, count: width)
      longest = max(longest, sequence.visible(row(i)))
    }
    let group = max(1, host.heads / max(1, host.keyHeads))
    for head in 0..<host.heads {
      let keys = host.keys.start + head / group &* host.dim &* host.keyStride
      accumulate(
        kernels, queries + head &* host.dim, (width, 1), keys, host.keyStride, rows: count, longest, host.dim,
        add: false, scores, stride)
      for i in 0..<max(count, 0) {
        let visible = sequence.visible(row(i))
        let one = scores + i &* stride
        var (top, sum, product): (Float, Float, Float) = (0, 0, 0)
        kernels.pointee.soften(one, nil, Int32(truncatingIfNeeded: visible), host.scale, &top, &sum, &product)
        var share = 1 / (sum * Float(host.heads))
        accumulate(
          kernels, &share, (0, 0), one, stride, rows: 1, visible, 1, add: head > 0, scratch + i &* stride, stride)
      }
    }
  }

  /// p of the i-th row of a tile.
  static func pointer(
    _ sequence: CapturedSequence, row: Int, inTile i: Int, scratch: UnsafeMutablePointer<Float>
  ) -> UnsafePointer<Float> {
    switch sequence.attention {
    case .rows(let rows): UnsafePointer(rows.start + row &* sequence.tokens)
    case .heads: UnsafePointer(scratch + i &* paddedStride(sequence.tokens))
    }
  }

  /// Fills sequence.entropy; refuses queries and keys whose softmax is no distribution.
  static func measureEntropy(_ context: Context, _ sequence: CapturedSequence) throws(TamisError) {
    let tiles = (sequence.rows &+ tile &- 1) / tile
    let workers = max(1, min(context.threads, tiles))
    let floats = try scratch(sequence)
    let borrowed = try context.borrowScratch(bytes: Size.product(workers, floats, 4))
    defer { context.returnScratch(borrowed) }
    let memory = borrowed.pointer.assumingMemoryBound(to: Float.self)
    context.parallel(count: tiles, workers: workers) { item, worker in
      let first = item &* tile
      let count = min(tile, sequence.rows &- first)
      let scratch = memory + worker &* floats
      compute(context.kernels, sequence, count: count, scratch: scratch) { first &+ $0 }
      for i in 0..<max(count, 0) {
        let p = pointer(sequence, row: first &+ i, inTile: i, scratch: scratch)
        sequence.entropy.start[first &+ i] = negativeEntropy(p, sequence.visible(first &+ i))
      }
    }
    guard sequence.entropy.allFinite else {
      throw TamisError(.argument, "q: the scores with key overflow; their softmax is no distribution")
    }
  }
}

/// sum of p log p.
func negativeEntropy(_ p: UnsafePointer<Float>, _ count: Int) -> Float {
  var sum: Float = 0
  for s in 0..<max(count, 0) where !(p[s] <= 0) { sum += p[s] * logf(p[s]) }
  return sum
}

/// y (+)= x w over floats; strides in floats, `x` those of (row, column).
@inline(__always)
func accumulate(
  _ kernels: UnsafePointer<tk_table>, _ x: UnsafePointer<Float>, _ xStride: (Int, Int), _ w: UnsafePointer<Float>,
  _ wStride: Int, rows: Int, _ outputs: Int, _ inputs: Int, add: Bool, _ y: UnsafeMutablePointer<Float>, _ yStride: Int
) {
  kernels.pointee.accumulate(
    x, xStride.0 &* 4, xStride.1 &* 4, w, wStride &* 4, Int32(truncatingIfNeeded: rows),
    Int32(truncatingIfNeeded: outputs), Int32(truncatingIfNeeded: inputs), add ? 1 : 0, y, yStride &* 4)
}
