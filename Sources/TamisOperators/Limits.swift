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

  /// Sums a large block, each thread its part.
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
    for _ in 0..<4 {
      let began = Clock.wall()
      var sums: [UInt64] = Array(repeating: 0, count: threads)
      sums.withUnsafeMutableBufferPointer { sums in
        let base = sums.baseAddress
        context.parallel(count: threads, workers: threads) { item, _ in
          var total = SIMD8<UInt64>(repeating: 0)
          var i = count &* item / threads
          let end = count &* (item &+ 1) / threads
          while i < end {
            total &+= words[i]
            i &+= 1
          }
          base?[item] = total.wrappedSum()
        }
      }
      let spent = max(1, Clock.wall() &- began)
      // The sum is used, so that the reads are not left out.
      if sums.reduce(0, &+) == UInt64(count &* 8) {
        best = max(best, Double(memoryBytes) / Double(spent) * 1e9)
      }
    }
    return best
  }
}
