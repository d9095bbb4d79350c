#include "textflag.h"

// func cloneAndExit(flags uintptr) int
TEXT ·cloneAndExit(SB),NOSPLIT,$0-16
	MOVQ flags+0(FP), DI
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	XORL R8, R8
	MOVL $56, AX // clone(flags, 0, 0, 0, 0)
	SYSCALL
	TESTQ AX, AX
	JNZ parent
	XORL DI, DI
	MOVL $60, AX // exit(0)
	SYSCALL
	INT $3
parent:
	MOVQ AX, ret+8(FP)
	RET
