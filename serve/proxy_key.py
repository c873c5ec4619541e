"""TorchServe's key for a reverse proxy, which sends it in place of its clients' own.

  python -m serve.proxy_key key.conf                                 nginx's line with the key
  python -m serve.proxy_key key.conf --url http://127.0.0.1:8080     of that server

The file is for its owner alone. A key that expires within two hours is renewed. Run it when
TorchServe has started and each hour, and have nginx read its configuration again: nginx -s reload.
The last line is one JSON object.
"""

import json
from datetime import timedelta
from pathlib import Path

from mlp_dist.console import command
from mlp_dist.core.errors import UsageError
from mlp_dist.core.io import replacing_file
from serve.client import URL, Client
from serve.keys import read_key

MARGIN = timedelta(hours=2)


def write_key(client: Client, file: Path) -> dict[str, object]:
    """What is printed as JSON. Raises UsageError where there is no key file, KeyFileError."""
    key_file = client.find_key_file()
    if key_file is None:
        raise UsageError("there is no key file; start TorchServe, or name its file with --key-file")
    renewed = client.renew_key(key_file, margin=MARGIN)
    key = read_key(key_file)
    with replacing_file(file) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(f'proxy_set_header Authorization "Bearer {key.value}";\n')
    return {
        "file": str(file),
        "renewed": renewed,
        "expires": key.expires.isoformat() if key.expires else None,
    }


def main() -> None:
    parser = command.Parser(
        prog="python -m serve.proxy_key",
        usage="python -m serve.proxy_key FILE [FLAG ...]",
        description=__doc__,
    )
    where = parser.add_argument_group("where it goes")
    where.add_argument("file", type=Path, metavar="FILE", help="as serve/nginx.conf includes it")
    whose = parser.add_argument_group("whose it is")
    whose.add_argument("--url", help=f"its address for predictions (that of serve.server start, else {URL})")
    whose.add_argument("--key-file", type=Path, metavar="FILE", help="TorchServe's keys (found by itself)")
    args = parser.parse_args()
    print(json.dumps(write_key(Client.find(args.url, key_file=args.key_file), args.file)))


if __name__ == "__main__":
    command.run(main)
