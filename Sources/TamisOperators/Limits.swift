// Measures this machine's own limits: register-only multiply-add loops of each kind, and reads of memory larger than
// the caches. Best of several short runs, because a shared machine only ever adds time.

import TamisKernels
package import TamisRuntime

package struct Limits {
  package var threads = 0
  /// Multiply-adds per second.
  package var int8 = 0.0
  package var bf16 = 0.0
  package var f32 = 0.0
  /// Bytes read per second.
  package var memory = 0.0

  private static let rounds = 12
  private static let targetNanoseconds: UInt64 = 5_000_000
  private static let memoryBytes = 256 << 20
  private static let streams = 8

  package static func measure(_ context: Context, threads: Int) throws(TamisError) -> Limits {
    var limits = Limits()
    limits.threads = min(threads, context.threads)
    limits.int8 = macs(context, limits.threads, Int32(TK_I8))
    limits.bf16 = macs(context, limits.threads, Int32(TK_BF16))
    limits.f32 = macs(context, limits.threads, Int32(TK_F32))
    limits.memory = try reads(context, limits.threads)
    return limits
  }

  private static func macs(_ context: Context, _ threads: Int, _ type: Int32) -> Double {
    let kernels = context.kernels
    var iterations: UInt64 = 1000
    var best = 0.0
    for _ in 0..<rounds {
      let began = Clock.wall()
      var done: [UInt64] = Array(repeating: 0, count: threads)
      done.withUnsafeMutableBufferPointer { done in
        let base = done.baseAddress
        context.parallel(count: threads, workers: threads) { item, _ in
          base?[item] = kernels.pointee.peak(type, iterations)
        }
      }
      let spent = max(1, Clock.wall() &- began)
      best = max(best, Double(done.reduce(0, &+)) / Double(spent) * 1e9)
      if spent < targetNanoseconds { iterations = min(iterations &* 4, 1 << 24) }
    }
    return best
  }

  /// Sums a large block, each thread its part in eight streams: one alone leaves a third of the bandwidth unused.
  private static func reads(_ context: Context, _ threads: Int) throws(TamisError) -> Double {
    let block = try context.borrowScratch(bytes: memoryBytes)
    defer {
      context.returnScratch(block)
      context.trim()
    }
    let words = block.pointer.assumingMemoryBound(to: SIMD8<UInt64>.self)
    let count = memoryBytes / 64
    words.update(repeating: SIMD8(repeating: 1), count: count)
    var best = 0.0
    // Eight slices, so that somebody else's turn on the processor spoils one of them; all of the block in between.
    let slice = count / 8
    let each = slice / threads
    for number in 0..<32 {
      let words = words + number % 8 &* slice
      let began = Clock.wall()
      var sums: [UInt64] = Array(repeating: 0, count: threads)
      sums.withUnsafeMutableBufferPointer { sums in
        let base = sums.baseAddress
        context.parallel(count: threads, workers: threads) { item, _ in
          base?[item] = sum(words + item &* each, stream: each / streams)
        }
      }
      let spent = max(1, Clock.wall() &- began)
      // The sum is used, so that the reads are not left out.
      let read = sums.reduce(0, &+) &* 8
      best = max(best, Double(read) / Double(spent) * 1e9)
    }
    return best
  }

  /// The sum of `streams` runs of `stream` words that lie one behind the other, read side by side.
  private static func sum(_ words: UnsafePointer<SIMD8<UInt64>>, stream: Int) -> UInt64 {
    var total = SIMD8<UInt64>(repeating: 0)
    var i = 0
    while i < stream {
      let end = min(i &+ 4, stream)
      for s in 0..<streams {
        var at = s &* stream &+ i
        while at < s &* stream &+ end {
          total &+= words[at]
          at &+= 1
        }
      }
      i = end
    }
    return total.wrappedSum()
  }
}
