// index_scores: the first verb alone, with every score stored. For those who want to look at scores or choose by
// other rules; select does not use it.

import TamisKernels
package import TamisRuntime

package enum IndexScores {
  /// scores [n, m]; keys that a row does not see get -infinity.
  package static func run(
    _ context: Context, _ indexer: Indexer, job: IndexJob, scores: Tensor
  ) throws(TamisError) {
    let began = Stopwatch()
    let blockQueries = max(1, min(Select.blockQueries, indexer.queries / max(1, 2 &* context.threads)))
    let blocks = (job.queries &+ blockQueries &- 1) / blockQueries
    let keys = job.keys.count
    // With few query rows the keys are cut instead; scores do not depend on the cut.
    let ranges = blocks >= context.threads ? 1 : max(1, min(context.threads &* 2, keys / Select.rangeKeys))
    let tile = 256
    let widenBytes = try Size.roundUp(indexer.widenBytes(tile: tile), to: 64)
    let packBytes = try indexer.packScratchBytes()
    let workerBytes = try Size.sum(Size.product(blockQueries, indexer.packedBytes), packBytes, widenBytes)
    let workers = max(1, min(context.threads, blocks &* ranges))
    let scratch = try context.borrowScratch(bytes: Size.product(workers, workerBytes))
    defer { context.returnScratch(scratch) }
    let token = context.beginCall()
    let others = context.parallel(count: blocks &* ranges, workers: workers) { item, worker in
      let row = item / ranges &* blockQueries
      let rows = min(blockQueries, job.queries &- row)
      let range = item % ranges
      let memory = scratch.pointer + worker &* workerBytes
      let packScratch = memory + blockQueries &* indexer.packedBytes
      for i in 0..<rows {
        indexer.pack(job.firstQuery &+ row &+ i, to: memory + i &* indexer.packedBytes, scratch: packScratch)
      }
      var s = keys &* range / ranges
      let end = keys &* (range &+ 1) / ranges
      while s < end {
        guard !context.cancelled(token) else { return }
        let n = min(tile, end &- s)
        let (run, first) = indexer.widened(job.keys, first: s, count: n, tile: packScratch + packBytes)
        for i in 0..<rows {
          let out = scores.row(job.firstQuery &+ row &+ i).assumingMemoryBound(to: Float.self) + s
          let seen = max(0, min(n, job.visible.at(row &+ i) &- s))
          if seen > 0 {
            indexer.score(
              memory + i &* indexer.packedBytes, run, first: first, count: seen, fresh: i == 0, to: out)
          }
          for j in seen..<n { out[j] = -.infinity }
        }
        s &+= n
      }
    }
    try context.checkCancelled(token)
    context.counters.add(
      .index,
      began.sample(others) { sample in
        let visible = UInt64(job.visible.sums(rows: job.queries, k: 0).visible)
        sample.queries = UInt64(indexer.queries)
        sample.keysScored = visible
        sample.keysDense = visible
        sample.flops = visible &* UInt64(indexer.flopsPerKey)
        sample.bytes = UInt64(
          keys &* job.keys.bytesPerRow &+ indexer.q.count &* indexer.q.dtype.bytes &+ indexer.w.count &* 4
            &+ scores.count &* 4)
      })
  }
}
