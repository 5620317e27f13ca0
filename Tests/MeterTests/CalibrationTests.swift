// From made-up runs on exact lines to the profile that says so, and what a model's own steps change in it.
import TamisMeter
import TamisRuntime
import Testing

@Suite struct CalibrationTests {
  private func runs(_ fixed: Double, _ rate: Double, _ sizes: [Double] = [1e6, 3e7, 1e9]) -> [Calibration.Run] {
    sizes.map { Calibration.Run(flops: $0, bytes: 0, seconds: fixed + $0 / rate, spread: 1) }
  }

  private func calibration() -> Calibration {
    var found = Calibration(peaks: .init(eightBit: 4e12, sixteenBit: 2e12, float32: 1e12), memory: 50e9)
    for phase in [\Calibration.prefill, \Calibration.decode] {
      found[keyPath: phase].index = runs(3e-6, 2e12)
      found[keyPath: phase].dense = runs(2e-6, 1e12)
      found[keyPath: phase].sparse = runs(4e-6, 0.5e12)
      found[keyPath: phase].linear = runs(0, 1.5e12)
    }
    found.prefill.expanded = runs(0.5e-6, 0.8e12)
    found.decode.weights = runs(2e-6, 20e9, [250e3, 1e6, 4e6, 16e6])
    return found
  }

  private func profile(_ calibration: Calibration) throws -> MachineProfile {
    try calibration.profile(name: "made up", date: "", pricePerHour: nil)
  }

  private func isClose(_ value: Double, _ expected: Double) -> Bool { abs(value / expected - 1) < 1e-6 }

  @Test func linesAreFound() throws {
    let found = try profile(calibration())
    #expect(found.basis == .calibrated && found.peaks == calibration().peaks && found.memoryBytesPerSecond == 50e9)
    #expect(isClose(found.prefill.indexer.efficiency, 0.5) && isClose(found.prefill.dense.efficiency, 0.5))
    #expect(isClose(found.prefill.sparse.efficiency, 0.25) && isClose(found.prefill.linear.efficiency, 0.75))
    #expect(isClose(found.prefill.overheadPerLayer, 2e-6) && isClose(found.prefill.sparseOverheadPerLayer, 5e-6))
    #expect(isClose(try #require(found.prefill.expanded).efficiency, 0.4))
    #expect(isClose(found.prefill.expandedOverheadPerLayer, -1.5e-6))
    #expect(found.prefill.linearBytesPerSecond == 0 && found.prefill.secondsPerMatrix == 0)
    #expect(found.decode.expanded == nil && found.decode.expandedOverheadPerLayer == 0)
    #expect(isClose(found.decode.linearBytesPerSecond, 20e9) && isClose(found.decode.secondsPerMatrix, 2e-6))
    #expect(found.trust.note.contains("norms, routing and sampling are not"))
  }

  @Test func aModelsStepsDecideWhatTheyTimed() throws {
    var given = calibration()
    given.model = "toy"
    // A megabyte in ten matrices was expected in 10 x 2 + 50 microseconds and took twice that.
    var token = Calibration.Steps()
    (token.rows, token.layers, token.matrices) = (1, 4, 10)
    (token.bytes, token.seconds, token.others) = (1e6, 140e-6, 80e-6)
    var prompt = Calibration.Steps()
    (prompt.rows, prompt.layers, prompt.flops, prompt.seconds, prompt.others) = (100, 4, 1e10, 0.02, 0.004)
    given.decode.steps = token
    given.prefill.steps = prompt
    let found = try profile(given)
    #expect(isClose(found.decode.secondsPerMatrix, 4e-6) && isClose(found.decode.linearBytesPerSecond, 10e9))
    #expect(isClose(found.decode.overheadPerLayer, 22e-6) && isClose(found.decode.linear.efficiency, 0.75))
    #expect(isClose(found.prefill.linear.efficiency, 0.25) && isClose(found.prefill.overheadPerLayer, 12e-6))
    #expect(isClose(found.prefill.sparseOverheadPerLayer, 5e-6))
    #expect(found.trust.note.contains("steps of toy (4 layers): a prompt of 100 tokens"))
  }

  @Test func nothingMeasuredIsRefused() throws {
    var given = calibration()
    given.decode.sparse = []
    #expect(throws: TamisError.self) { try profile(given) }
    given = calibration()
    given.prefill.expanded = [Calibration.Run(flops: 1, bytes: 0, seconds: 0, spread: 1)]
    #expect(throws: TamisError.self) { try profile(given) }
  }
}
