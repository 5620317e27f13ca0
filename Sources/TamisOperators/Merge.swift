// merge: joins two attention results over disjoint keys by their log-sum-exp, for callers who split a context.

import Glibc
import TamisKernels
package import TamisRuntime

package enum Merge {
  /// out, other [n, h, e] F32; lse, otherLSE [n, h] F32; in place.
  package static func run(
    _ context: Context, other: Tensor, otherLSE: Tensor, out: Tensor, lse: Tensor
  ) throws(TamisError) {
    try check(other: other, otherLSE: otherLSE, out: out, lse: lse)
    let began = Stopwatch()
    let heads = out.shape[1]
    let width = out.shape[2]
    let token = context.beginCall()
    let others = context.parallel(count: heads == 0 ? 0 : out.shape[0], workers: context.threads) { row, _ in
      guard !context.cancelled(token) else { return }
      let log = lse.row(row).assumingMemoryBound(to: Float.self)
      let otherLog = otherLSE.row(row).assumingMemoryBound(to: Float.self)
      for head in 0..<heads {
        let a = log[head]
        let b = otherLog[head]
        if b == -.infinity { continue }
        let top = max(a, b)
        let shareA = a == -.infinity ? 0 : expf(a - top)
        let shareB = expf(b - top)
        let x = (out.row(row) + head &* out.stride[1]).assumingMemoryBound(to: Float.self)
        let y = (other.row(row) + head &* other.stride[1]).assumingMemoryBound(to: Float.self)
        let factor = 1 / (shareA + shareB)
        for e in 0..<width { x[e] = (x[e] * shareA + y[e] * shareB) * factor }
        log[head] = top + logf(shareA + shareB)
      }
    }
    try context.checkCancelled(token)
    context.counters.add(
      .merge,
      began.sample(others) { sample in
        sample.queries = UInt64(out.shape[0])
        sample.bytes = UInt64(out.count &* 12 &+ lse.count &* 12)
      })
  }

  private static func check(other: Tensor, otherLSE: Tensor, out: Tensor, lse: Tensor) throws(TamisError) {
    try require(out, "out", rank: 3)
    try require(other, "other", rank: 3)
    try require(lse, "lse", rank: 2)
    try require(otherLSE, "other_lse", rank: 2)
    try require(out, "out", .f32)
    try require(other, "other", .f32)
    try require(lse, "lse", .f32)
    try require(otherLSE, "other_lse", .f32)
    for axis in 0..<3 { try require(other, "other", axis: axis, is: out.shape[axis]) }
    for axis in 0..<2 {
      try require(lse, "lse", axis: axis, is: out.shape[axis])
      try require(otherLSE, "other_lse", axis: axis, is: out.shape[axis])
    }
    try requireApart(out, "out", from: (other, "other"), (otherLSE, "other_lse"), (lse, "lse"))
    try requireApart(lse, "lse", from: (other, "other"), (otherLSE, "other_lse"))
  }
}
