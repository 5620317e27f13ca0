// A parallel call on the host's threads. The host runs one task per lane, on threads and in an order of its
// choice; each task takes items until none is left. What a host that starts too few tasks leaves undone, the
// caller does afterwards.
import Glibc
import Synchronization
import TamisKernels

final class HostRegion: @unchecked Sendable {
  private let body: (Int, Int) -> Void
  private let count: Int
  private let lanes: Int
  private let kernels: UnsafePointer<tk_table>
  private let caller = pthread_self()
  private let nextItem = Atomic<Int>(0)
  private let nextLane = Atomic<Int>(0)
  private let cpuNanoseconds = Atomic<UInt64>(0)

  init(count: Int, lanes: Int, kernels: UnsafePointer<tk_table>, body: @escaping (Int, Int) -> Void) {
    self.count = count
    self.lanes = lanes
    self.kernels = kernels
    self.body = body
  }

  /// Returns the processor time spent by threads other than the caller's.
  func run(on host: ContextOptions.Parallel, user: UnsafeMutableRawPointer?) -> UInt64 {
    host(user, lanes, { argument, _ in
      guard let argument else { return }
      Unmanaged<HostRegion>.fromOpaque(argument).takeUnretainedValue().task()
    }, Unmanaged.passUnretained(self).toOpaque())
    drain(lane: 0)
    return cpuNanoseconds.load(ordering: .acquiring)
  }

  /// Lanes are given out here, not by the host's index: two tasks can then never share one.
  private func task() {
    let lane = nextLane.wrappingAdd(1, ordering: .relaxed).oldValue
    guard lane < lanes else { return }
    let begin = Clock.threadCPU()
    drain(lane: lane)
    guard pthread_equal(pthread_self(), caller) == 0 else { return }
    cpuNanoseconds.wrappingAdd(Clock.threadCPU() &- begin, ordering: .releasing)
  }

  private func drain(lane: Int) {
    let outer = KernelRegion.enter(kernels)
    defer { KernelRegion.leave(kernels, outer: outer) }
    while true {
      let item = nextItem.wrappingAdd(1, ordering: .relaxed).oldValue
      guard item < count else { return }
      body(item, lane)
    }
  }
}
