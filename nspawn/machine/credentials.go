package machine

import (
	"cmp"
	"path/filepath"
	"slices"
)

// Credential is a secret that the machine finds in its CREDENTIALS_DIRECTORY. The secret
// is the content of File if that is set, and Value otherwise. File is a path below the
// directory Dir, and must not lead out of Dir.
type Credential struct {
	Name, Value, Dir, File string
}

// credentialArgs passes credentials as files, because every user can read the command
// line.
func credentialArgs(s Spec, h Host) (args []string) {
	list := slices.SortedFunc(slices.Values(s.Credentials), func(a, b Credential) int { return cmp.Compare(a.Name, b.Name) })
	for _, credential := range list {
		args = append(args, "--load-credential="+credential.Name+":"+filepath.Join(h.Credentials, credential.Name))
	}
	return args
}
