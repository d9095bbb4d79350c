package machine

import (
	"cmp"
	"path/filepath"
	"slices"
)

// Credential is a secret that the machine finds in its CREDENTIALS_DIRECTORY. It is the
// content of File, a path below the directory Dir that leads nowhere else, or, without,
// Value.
type Credential struct {
	Name, Value, Dir, File string
}

// credentialArgs: the content is in files, as everybody can read the command line.
func credentialArgs(s Spec, h Host) (args []string) {
	list := slices.SortedFunc(slices.Values(s.Credentials), func(a, b Credential) int { return cmp.Compare(a.Name, b.Name) })
	for _, credential := range list {
		args = append(args, "--load-credential="+credential.Name+":"+filepath.Join(h.Credentials, credential.Name))
	}
	return args
}
