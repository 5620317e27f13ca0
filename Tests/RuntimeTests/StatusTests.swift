// Error texts, checked sizes, the misuse detector.
import TamisRuntime
import TamisShims
import TamisTestSupport
import Testing

@Suite struct StatusTests {
  private func text() -> String { String(cString: tamis_shims_error_text()) }

  @Test func recordAndClear() {
    #expect(TamisError(.full, "cache: no room").record() == -3)
    #expect(text() == "cache: no room")
    TamisError.clearError()
    #expect(text() == "")
  }

  @Test func longTextIsCutBetweenCharacters() {
    for prefix in 505...512 {
      let whole = String(repeating: "a", count: prefix)
      for character in ["b", "é", "€", "😀"] {
        _ = TamisError(.internal, whole + character + character).record()
        let kept = text()
        #expect(kept.utf8.count <= 511)
        #expect((whole + character + character).hasPrefix(kept))
        let room = max(0, 511 - prefix) / character.utf8.count
        #expect(kept.utf8.count == min(prefix, 511) + min(room, 2) * character.utf8.count)
      }
    }
  }

  @Test func textBelongsToItsThread() {
    _ = TamisError(.io, "mine").record()
    onThreads(4) { _ in
      #expect(String(cString: tamis_shims_error_text()) == "")
      _ = TamisError(.io, "theirs").record()
    }
    #expect(text() == "mine")
  }
}

@Suite struct SizeTests {
  @Test func productsAndSums() throws {
    #expect(try Size.product(3, 5, 7, 2) == 210)
    #expect(try Size.sum(3, 5, 7, 2) == 17)
    #expect(try Size.product(0, .max) == 0)
    #expect(try Size.roundUp(65, to: 64) == 128)
    #expect(try Size.roundUp(64, to: 64) == 64)
    #expect(try Size.roundUp(0, to: 64) == 0)
  }

  @Test func overflowAndNegativesFail() {
    #expect(status { _ = try Size.product(.max, 2) } == .argument)
    #expect(status { _ = try Size.product(-1, 2) } == .argument)
    #expect(status { _ = try Size.product(-1, -2) } == .argument)
    #expect(status { _ = try Size.product(1 << 40, 1 << 20, 8) } == .argument)
    #expect(status { _ = try Size.sum(.max, 1) } == .argument)
    #expect(status { _ = try Size.sum(-1, 1) } == .argument)
    #expect(status { _ = try Size.roundUp(.max, to: 64) } == .argument)
    #expect(status { _ = try Size.roundUp(1, to: 0) } == .argument)
  }
}

@Suite struct BusyFlagTests {
  @Test func theSecondIsRefused() {
    let flag = BusyFlag()
    #expect(status { try flag.enter("sequence") } == .ok)
    #expect(status { try flag.enter("sequence") } == .busy)
    flag.leave()
    let again = flag.tryEnter()
    #expect(again)
  }
}
