// Owns how much attention each key of a row gets: the softmax probability, averaged over heads, made a second time from
// the queries, the keys and the log of the denominator that attend gave. That costs the first of attend's two matrix
// products again and one exponential for each (head, key), so it runs only where somebody asks. It attends to nothing
// itself and refuses nothing: the call to attend with the same operands has checked them.

import Glibc
import TamisKernels
package import TamisRuntime

package enum AttentionMass {
  /// Keys of one task, and the rows of a wave times their keys at most (at least one row is in work).
  private static let block = 128
  private static let waveKeys = 1 << 18

  /// Calls `body` for each row of the jobs in order, on the calling thread: the number of its job, its keys (nil: 0,
  /// 1, 2 ...; those that are -1 have no mass), and the mass of each. lse [n, heads] as attend gave it.
  package static func run(
    _ context: Context, _ shape: Attention, q: Tensor, jobs: [AttendJob], indices: Tensor?, lse: Tensor,
    _ body: (_ job: Int, _ keys: UnsafePointer<Int32>?, _ mass: UnsafeBufferPointer<Float>) -> Void
  ) throws(TamisError) {
    let began = Stopwatch()
    let token = context.beginCall()
    var longest = 1
    for job in jobs { longest = max(longest, indices?.shape[1] ?? job.keys.count) }
    let waveRows = max(1, waveKeys / longest)
    let blocks = (longest &+ block &- 1) / block
    let workers = max(1, context.threads)
    let plan = try MassPlan(shape, block: block)
    let massBytes = try Size.roundUp(Size.product(min(waveRows, q.shape[0]), longest, 4), to: 64)
    let scratch = try context.borrowScratch(bytes: Size.sum(massBytes, Size.product(workers, plan.bytes)))
    defer { context.returnScratch(scratch) }
    let masses = scratch.pointer.assumingMemoryBound(to: Float.self)

    var others: UInt64 = 0
    var pairs = 0
    for (number, job) in jobs.enumerated() {
      var first = 0
      while first < job.queries {
        let rows = min(waveRows, job.queries &- first)
        let begin = first
        others &+= context.parallel(count: rows &* blocks, workers: workers) { item, worker in
          guard blocks > 0, !context.cancelled(token) else { return }
          let row = item / blocks
          let keys = MassKeys(job, row: begin &+ row, indices)
          let low = (item &- row &* blocks) &* block
          guard low < keys.count else { return }
          let memory = scratch.pointer + (massBytes &+ worker &* plan.bytes)
          let work = MassWork(shape: shape, q: q, lse: lse, plan: plan, memory: memory)
          work.run(keys, first: low, count: min(block, keys.count &- low), to: masses + (row &* longest &+ low))
        }
        try context.checkCancelled(token)
        for row in Range(uncheckedBounds: (0, rows)) {
          let keys = MassKeys(job, row: first &+ row, indices)
          pairs &+= keys.count
          body(number, keys.list, UnsafeBufferPointer(start: masses + row &* longest, count: keys.count))
        }
        first &+= rows
      }
    }
    // Work of attend, but no keys attended to a second time.
    context.counters.add(
      .attend,
      began.sample(others) { sample in
        sample.flops = UInt64(pairs) &* UInt64(2 &* shape.heads &* shape.keyDim)
        sample.bytes = UInt64(pairs) &* UInt64(jobs.first.map { $0.keys.bytesPerRow &* shape.kvHeads } ?? 0)
      })
  }
}

/// The keys of one row of a job.
private struct MassKeys {
  let job: AttendJob
  /// Its row of q.
  let query: Int
  let count: Int
  let list: UnsafePointer<Int32>?

  init(_ job: AttendJob, row: Int, _ indices: Tensor?) {
    self.job = job
    query = job.firstQuery &+ row
    count = indices?.shape[1] ?? job.visible.at(row)
    list = indices.map { UnsafePointer($0.row(job.firstQuery &+ row).assumingMemoryBound(to: Int32.self)) }
  }

  /// The i-th; -1: none.
  func key(_ i: Int) -> Int { list.map { Int($0[i]) } ?? i }
}

/// A worker's memory: queries and keys as operands, scores, a row of floats, the product's own scratch.
private struct MassPlan {
  let keysAt: Int
  let scoresAt: Int
  let floatsAt: Int
  let kernelAt: Int
  let bytes: Int

  init(_ shape: Attention, block: Int) throws(TamisError) {
    let kernel = shape.kernels.pointee.matmul_scratch_bytes(
      shape.type, Int32(truncatingIfNeeded: shape.headsPerKV), Int32(truncatingIfNeeded: block),
      Int32(truncatingIfNeeded: shape.keyDim))
    keysAt = try Size.roundUp(Size.product(shape.headsPerKV, shape.keyDim, shape.elementBytes), to: 64)
    scoresAt = try Size.roundUp(Size.sum(keysAt, Size.product(block, shape.keyDim, shape.elementBytes)), to: 64)
    floatsAt = try Size.roundUp(Size.sum(scoresAt, Size.product(shape.headsPerKV, block, 4)), to: 64)
    kernelAt = try Size.roundUp(Size.sum(floatsAt, Size.product(shape.keyDim, 4)), to: 64)
    bytes = try Size.roundUp(Size.sum(kernelAt, kernel), to: 64)
  }
}

private struct MassWork {
  let shape: Attention
  let q: Tensor
  let lse: Tensor
  let plan: MassPlan
  let memory: UnsafeMutableRawPointer

  private var scores: UnsafeMutablePointer<Float> { (memory + plan.scoresAt).assumingMemoryBound(to: Float.self) }

  /// mass [count]: of keys first ..< first + count of a row.
  func run(_ keys: MassKeys, first: Int, count: Int, to mass: UnsafeMutablePointer<Float>) {
    mass.update(repeating: 0, count: count)
    var kvHead = 0
    while kvHead < shape.kvHeads {
      score(keys, first: first, count: count, kvHead)
      let logs = lse.row(keys.query).assumingMemoryBound(to: Float.self) + kvHead &* shape.headsPerKV
      var head = 0
      while head < shape.headsPerKV {
        // A row without keys has no denominator.
        if logs[head] > -.infinity { add(scores + head &* count, count, log: logs[head], to: mass) }
        head &+= 1
      }
      kvHead &+= 1
    }
    let share = 1 / Float(shape.heads)
    var i = 0
    while i < count {
      mass[i] *= keys.key(first &+ i) < 0 ? 0 : share
      i &+= 1
    }
  }

  private func add(_ scores: UnsafePointer<Float>, _ count: Int, log: Float, to mass: UnsafeMutablePointer<Float>) {
    var i = 0
    while i < count {
      mass[i] += expf(scores[i] * shape.scale - log)
      i &+= 1
    }
  }

  /// scores [heads of the key head, count] = q k^T
  private func score(_ keys: MassKeys, first: Int, count: Int, _ kvHead: Int) {
    let row = shape.keyDim &* shape.elementBytes
    var head = 0
    while head < shape.headsPerKV {
      packQuery(keys.query, kvHead &* shape.headsPerKV &+ head, to: memory + head &* row)
      head &+= 1
    }
    let source = keys.job.keys.head(kvHead)
    var i = 0
    while i < count {
      let to = memory + (plan.keysAt &+ i &* row)
      let operand = shape.operand(source, max(0, keys.key(first &+ i)), to: to)
      if operand != UnsafeRawPointer(to) { to.copyMemory(from: operand, byteCount: row) }
      i &+= 1
    }
    shape.kernels.pointee.matmul(
      shape.type, memory, row, memory + plan.keysAt, row, Int32(truncatingIfNeeded: shape.headsPerKV),
      Int32(truncatingIfNeeded: count), Int32(truncatingIfNeeded: shape.keyDim), scores, count &* 4,
      memory + plan.kernelAt)
  }

  private func packQuery(_ query: Int, _ head: Int, to: UnsafeMutableRawPointer) {
    let from = UnsafeRawPointer(q.row(query) + head &* q.stride[1])
    if shape.readsDirectly(q.dtype) {
      to.copyMemory(from: from, byteCount: shape.keyDim &* shape.elementBytes)
    } else if shape.type == Int32(TK_F32) {
      loadFloats(q.dtype, from, nil, 1, shape.keyDim, to: to.assumingMemoryBound(to: Float.self), shape.kernels)
    } else {
      let floats = (memory + plan.floatsAt).assumingMemoryBound(to: Float.self)
      loadFloats(q.dtype, from, nil, 1, shape.keyDim, to: floats, shape.kernels)
      storeFloats(floats, shape.keyDim, as: .bf16, to: to, shape.kernels)
    }
  }
}
