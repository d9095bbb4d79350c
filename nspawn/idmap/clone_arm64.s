#include "textflag.h"

// func cloneAndExit(flags uintptr) int
TEXT ·cloneAndExit(SB),NOSPLIT,$0-16
	MOVD flags+0(FP), R0
	MOVD ZR, R1
	MOVD ZR, R2
	MOVD ZR, R3
	MOVD ZR, R4
	MOVD $220, R8 // clone(flags, 0, 0, 0, 0)
	SVC
	CBNZ R0, parent
	MOVD $93, R8 // exit(0)
	SVC
	BRK
parent:
	MOVD R0, ret+8(FP)
	RET
