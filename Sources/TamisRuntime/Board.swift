// The notice board between the thread that runs a parallel call and its workers: which region is open, which
// items are left, who is asleep. A few atomic words in memory of their own, because futexes need an address.
//
// A region is over when its items are done, never when its workers have come: a worker that the system does not
// run, or that a fork left behind, delays nobody.
import Synchronization
import TamisShims

/// What the items of a region do; lives on the caller's stack while the region is open.
struct Job {
  let body: (_ item: Int, _ worker: Int) -> Void
  /// Added to the region's item numbers.
  let first: Int
}

struct Board: @unchecked Sendable {
  static let bytes = 192
  private static let spins = 2000

  /// `bytes` bytes, 64-byte aligned. One cache line each for claiming, finishing and waking.
  let memory: UnsafeMutableRawPointer

  /// region << 32 | items not handed out yet. Claiming takes one off, and fails when the region has changed.
  private var ticket: UnsafeMutablePointer<Atomic<UInt64>> { word(at: 0) }
  /// Items done by workers. The caller sleeps on it.
  private var finished: UnsafeMutablePointer<Atomic<UInt32>> { word(at: 64) }
  private var callerSleeps: UnsafeMutablePointer<Atomic<UInt32>> { word(at: 68) }
  private var cpuNanoseconds: UnsafeMutablePointer<Atomic<UInt64>> { word(at: 72) }
  /// The region's number. The workers sleep on it.
  private var signal: UnsafeMutablePointer<Atomic<UInt32>> { word(at: 128) }
  private var sleepers: UnsafeMutablePointer<Atomic<UInt32>> { word(at: 132) }
  private var stopping: UnsafeMutablePointer<Atomic<UInt32>> { word(at: 136) }
  /// The open region: written before its ticket, so whoever claims an item has read the right ones.
  private var count: UnsafeMutablePointer<Atomic<UInt32>> { word(at: 140) }
  private var lanes: UnsafeMutablePointer<Atomic<UInt32>> { word(at: 144) }
  private var job: UnsafeMutablePointer<Atomic<UInt>> { word(at: 152) }

  /// Nothing offered, nobody asleep.
  init(memory: UnsafeMutableRawPointer) {
    self.memory = memory
    for word in [finished, callerSleeps, signal, sleepers, stopping, count, lanes] {
      word.initialize(to: Atomic(0))
    }
    ticket.initialize(to: Atomic(0))
    cpuNanoseconds.initialize(to: Atomic(0))
    job.initialize(to: Atomic(0))
  }

  private func word<Word: ~Copyable>(at offset: Int) -> UnsafeMutablePointer<Word> {
    (memory + offset).assumingMemoryBound(to: Word.self)
  }

  // MARK: The caller

  /// Offers `count` items of a job to the workers numbered below `lanes` and wakes at most `wake` of them. The
  /// region before must be over.
  func open(_ job: UnsafePointer<Job>, count: UInt32, lanes: Int, wake: Int) {
    self.job.pointee.store(UInt(bitPattern: job), ordering: .relaxed)
    self.count.pointee.store(count, ordering: .relaxed)
    self.lanes.pointee.store(UInt32(truncatingIfNeeded: lanes), ordering: .relaxed)
    finished.pointee.store(0, ordering: .relaxed)
    cpuNanoseconds.pointee.store(0, ordering: .relaxed)
    let region = signal.pointee.load(ordering: .relaxed) &+ 1
    ticket.pointee.store(UInt64(region) << 32 | UInt64(count), ordering: .releasing)
    notify(region, wake: wake)
  }

  /// Waits until the workers have done `items`; returns the processor time they spent.
  func wait(items: UInt32) -> UInt64 {
    if !spin({ finished.pointee.load(ordering: .acquiring) == items }) { sleep(untilFinished: items) }
    return cpuNanoseconds.pointee.load(ordering: .relaxed)
  }

  private func sleep(untilFinished items: UInt32) {
    callerSleeps.pointee.store(1, ordering: .sequentiallyConsistent)
    while true {
      let done = finished.pointee.load(ordering: .sequentiallyConsistent)
      if done == items { break }
      tamis_shims_futex_wait(finished, done)
    }
    callerSleeps.pointee.store(0, ordering: .relaxed)
  }

  /// Ends every worker.
  func stop() {
    stopping.pointee.store(1, ordering: .relaxed)
    notify(signal.pointee.load(ordering: .relaxed) &+ 1, wake: Int(Int32.max))
  }

  /// A worker counts itself asleep and then looks at the signal; we write the signal and then look for sleepers:
  /// one of the two sees the other.
  private func notify(_ region: UInt32, wake: Int) {
    signal.pointee.store(region, ordering: .sequentiallyConsistent)
    guard sleepers.pointee.load(ordering: .sequentiallyConsistent) != 0 else { return }
    tamis_shims_futex_wake(signal, Int32(clamping: wake))
  }

  // MARK: The workers

  /// Waits for a region other than `seen`, which it updates; false: end yourself.
  func waitForRegion(_ seen: inout UInt32) -> Bool {
    let last = seen
    if !spin({ signal.pointee.load(ordering: .acquiring) != last }) {
      sleepers.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
      while signal.pointee.load(ordering: .sequentiallyConsistent) == last { tamis_shims_futex_wait(signal, last) }
      sleepers.pointee.wrappingSubtract(1, ordering: .relaxed)
    }
    seen = signal.pointee.load(ordering: .acquiring)
    return stopping.pointee.load(ordering: .relaxed) == 0
  }

  /// True while `lane` may take part and items are left.
  func wants(lane: Int) -> Bool {
    UInt32(truncatingIfNeeded: ticket.pointee.load(ordering: .acquiring)) != 0
      && lane < Int(lanes.pointee.load(ordering: .relaxed))
  }

  /// Reports items done and the time they took; the caller may return the moment this is called.
  func finish(items: UInt32, cpuNanoseconds spent: UInt64) {
    cpuNanoseconds.pointee.wrappingAdd(spent, ordering: .relaxed)
    finished.pointee.wrappingAdd(items, ordering: .sequentiallyConsistent)
    guard callerSleeps.pointee.load(ordering: .sequentiallyConsistent) != 0 else { return }
    tamis_shims_futex_wake(finished, 1)
  }

  // MARK: Both

  /// Claims and runs items until none is left; returns how many. All are of one region, which cannot end before
  /// they are reported.
  func drain(lane: Int) -> UInt32 {
    var items: UInt32 = 0
    while runOne(lane: lane) { items &+= 1 }
    return items
  }

  /// Never inlined: what the closure's call retains must be given back before the item counts as done, because
  /// the caller's closure may not outlive the region.
  @inline(never)
  private func runOne(lane: Int) -> Bool {
    guard let (job, item) = claim(lane: lane) else { return false }
    job.pointee.body(job.pointee.first &+ item, lane)
    return true
  }

  private func claim(lane: Int) -> (UnsafePointer<Job>, Int)? {
    var old = ticket.pointee.load(ordering: .acquiring)
    while true {
      let left = UInt32(truncatingIfNeeded: old)
      guard left != 0 else { return nil }
      let job = UnsafePointer<Job>(bitPattern: self.job.pointee.load(ordering: .relaxed))
      let item = count.pointee.load(ordering: .relaxed) &- left
      guard let job, lane < Int(lanes.pointee.load(ordering: .relaxed)) else { return nil }
      let (claimed, seen) = ticket.pointee.compareExchange(
        expected: old, desired: old &- 1, successOrdering: .acquiringAndReleasing, failureOrdering: .acquiring)
      if claimed { return (job, Int(item)) }
      old = seen
    }
  }

  private func spin(_ done: () -> Bool) -> Bool {
    for _ in 0..<Self.spins {
      if done() { return true }
      tamis_shims_pause()
    }
    return false
  }
}
