"""Names the machines of QEMU that stand in for boards, and how their clocks count instructions."""

from __future__ import annotations

from dataclasses import dataclass

PROGRAM = "qemu-system-arm"


@dataclass(frozen=True)
class Board:
    """Describes an emulated board. Its memory is that of emulation/cortex-m/mps2.ld."""

    name: str  # as a table shows it
    target: str  # what is compiled for it
    machine: str  # as QEMU names it
    tick: float  # instructions in a tick of SysTick, which counts the board's clock

    @property
    def command(self) -> tuple[str, ...]:
        """Returns the emulator's command, to which `-kernel PROGRAM` is added. Each instruction takes 1 ns."""
        return (
            *(PROGRAM, "-machine", self.machine, "-nographic", "-monitor", "none", "-serial", "none"),
            *("-semihosting-config", "enable=on,target=native", "-icount", "shift=0"),
        )

    def instructions(self, ticks: int) -> int:
        """Returns the instructions in a number of ticks, to a tick."""
        return round(ticks * self.tick)


CORTEX_M7 = Board("Cortex-M7", "cortex-m7", "mps2-an500", 40)  # 25 MHz
CORTEX_M55 = Board("Cortex-M55", "cortex-m55", "mps3-an547", 31.25)  # 32 MHz
