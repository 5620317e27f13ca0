// topk: the selection alone, over scores that the caller already has. Each row first guesses a threshold from a
// strided sample, so that one pass over the row usually keeps little more than k; the guess is verified by the count
// (fewer than k above it: the row is done again without), so the result is exact on any data. The rank in the sample
// stands 2.5 standard deviations above the expected one: about 1 row in 100 of random data is done again
// (docs/kernels/select.md).

import TamisKernels
package import TamisRuntime

package enum TopK {
  /// One score in this many is sampled.
  private static let sampleStride = 64

  /// scores [n, m] F32 -> indices [n, k] I32.
  package static func run(
    _ context: Context, scores: Tensor, visible: Visible, k: Int, indices: Tensor
  ) throws(TamisError) {
    let began = Stopwatch()
    let rows = scores.shape[0]
    let workers = max(1, min(context.threads, rows))
    let candidateBytes = try Size.roundUp(Candidates.bytes(k: k), to: 64)
    let samples = scores.shape[1] / sampleStride &+ 1
    let sampleBytes = try Size.roundUp(Size.product(samples, 8), to: 64)
    let workerBytes = try Size.sum(candidateBytes, sampleBytes, Int(TK_SHRINK_SCRATCH))
    let scratch = try context.borrowScratch(bytes: Size.product(workers, workerBytes))
    defer { context.returnScratch(scratch) }
    let token = context.beginCall()
    let others = context.parallel(count: rows, workers: workers) { row, worker in
      guard !context.cancelled(token) else { return }
      let memory = scratch.pointer + worker &* workerBytes
      let sample = (memory + candidateBytes).assumingMemoryBound(to: Float.self)
      let shrinkScratch = memory + (candidateBytes &+ sampleBytes)
      var kept = Candidates(context.kernels, k: k, memory: memory)
      let values = UnsafePointer(scores.row(row).assumingMemoryBound(to: Float.self))
      let count = visible.at(row)
      kept.begin(guess: guess(context.kernels, values, count, k: k, sample: sample, scratch: shrinkScratch))
      offer(&kept, values, count, scratch: shrinkScratch)
      if kept.full, kept.count < min(k, count) {
        kept.begin(guess: nil)
        offer(&kept, values, count, scratch: shrinkScratch)
      }
      kept.finish(
        indices: indices.row(row).assumingMemoryBound(to: Int32.self), scores: nil, width: k, scratch: shrinkScratch)
    }
    try context.checkCancelled(token)
    context.counters.add(
      .topk,
      began.sample(others) { sample in
        let sums = visible.sums(rows: rows, k: k)
        sample.queries = UInt64(rows)
        sample.keysSelected = UInt64(sums.selected)
        sample.keysDense = UInt64(sums.visible)
        sample.bytes = UInt64(sums.visible &* 4 &+ rows &* k &* 4)
      })
  }

  private static func offer(
    _ kept: inout Candidates, _ values: UnsafePointer<Float>, _ count: Int, scratch: UnsafeMutableRawPointer
  ) {
    var s = 0
    while s < count {
      let n = min(Candidates.tile, count &- s)
      kept.offer(values + s, n, base: s, scratch: scratch)
      s &+= n
    }
  }

  /// A threshold that a little more than k scores should be above; nil where sampling does not pay.
  private static func guess(
    _ kernels: UnsafePointer<tk_table>, _ values: UnsafePointer<Float>, _ count: Int, k: Int,
    sample: UnsafeMutablePointer<Float>, scratch: UnsafeMutableRawPointer
  ) -> Float? {
    let samples = count / sampleStride
    let expected = Double(k) / Double(sampleStride)
    let rank = Int((expected + 2.5 * expected.squareRoot()).rounded(.up))
    guard expected >= 4, rank &* 2 < samples else { return nil }
    for i in 0..<samples {
      let value = values[i &* sampleStride]
      sample[i] = value.isNaN ? -.infinity : value
    }
    let indices = UnsafeMutableRawPointer(sample + samples).assumingMemoryBound(to: Int32.self)
    for i in 0..<samples { indices[i] = Int32(truncatingIfNeeded: i) }
    return kernels.pointee.select_shrink(
      sample, indices, Int32(truncatingIfNeeded: samples), Int32(truncatingIfNeeded: rank), scratch)
  }
}
