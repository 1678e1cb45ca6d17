"""Tests that credentials are removed from an address and the rest is unchanged."""

from __future__ import annotations

import pytest

from jobs.util.redaction import holds_credentials, plain_scheme, scrubbed, scrubbed_text

CUT = {
    # user info
    "https://user:PW@host/x.jpg": "https://host/x.jpg",
    "https://user@host/x.jpg": "https://host/x.jpg",
    "https://:PW@host/x.jpg": "https://host/x.jpg",
    "https://user%3APW@host/x.jpg": "https://host/x.jpg",
    "https://user:PW%40host/x.jpg": "https://host/x.jpg",
    "https://user:P@W@host/x.jpg": "https://host/x.jpg",
    "https://user:PW/more@host/x.jpg": "https://host/x.jpg",
    "https://user:PW#more@host/x.jpg": "https://host/x.jpg",
    "https://user:PW?more@host/x.jpg": "https://host/x.jpg",
    "https://user:1234@host:8080/x.jpg": "https://host:8080/x.jpg",
    "https:/user:PW@host/x.jpg": "https:/host/x.jpg",
    "http:/user:PW@host/x.jpg": "http:/host/x.jpg",
    "ftp:/user:PW@host/x.jpg": "ftp:/host/x.jpg",
    "s3:/KEY:PW@bucket/x.jpg": "s3:/bucket/x.jpg",
    "gs:/KEY:PW@bucket/x.jpg": "gs:/bucket/x.jpg",
    "az:/KEY:PW@bucket/x.jpg": "az:/bucket/x.jpg",
    "https://host/x.jpg?bearer=PW&w=2": "https://host/x.jpg?w=2",
    "https://host/x.jpg?otp=PW": "https://host/x.jpg",
    "https://host/x.jpg?passcode=PW": "https://host/x.jpg",
    "https://host/x.jpg?code=PW0123456789abcdef": "https://host/x.jpg",
    "https://host/x.jpg?ticket=PW0123456789abcdef": "https://host/x.jpg",
    "https:\\\\user:PW@host\\x.jpg": "https:\\\\host\\x.jpg",
    "S3://KEY:PW@bucket/x.jpg": "S3://bucket/x.jpg",
    "gs://KEY:PW@bucket/x.jpg": "gs://bucket/x.jpg",
    "az://KEY:PW@container/x.jpg": "az://container/x.jpg",
    "ftp://user:PW@host/x.jpg": "ftp://host/x.jpg",
    "hdfs://user:PW@host:9000/x.jpg": "hdfs://host:9000/x.jpg",
    "file://user:PW@host/x.jpg": "file://host/x.jpg",
    "abfs://container:PW@account/x.jpg": "abfs://account/x.jpg",
    "//user:PW@host/x.jpg": "//host/x.jpg",
    "//user%3APW@host/x.jpg": "//host/x.jpg",
    " \n https://user:PW@host/x.jpg": " \n https://host/x.jpg",
    "https://proxy/?url=https%3A%2F%2Fuser%3APW%40host%2Fx.jpg": "https://proxy/?url=https%3A%2F%2Fhost%2Fx.jpg",
    # passwords that begin like a port
    "https://user:12/34PW@host/x.jpg": "https://host/x.jpg",
    "https://user:8080/PW@host/x.jpg": "https://host/x.jpg",
    "https://user:12?PW@host/x.jpg": "https://host/x.jpg",
    "https://user:12#PW@host/x.jpg": "https://host/x.jpg",
    "https://user:/PW@host/x.jpg": "https://host/x.jpg",
    "https://u:12/PW@host": "https://host",
    "https://user:12/PW=@host/x.jpg": "https://host/x.jpg",
    "https://user:1/PW/a@host/b@c.jpg": "https://host/b@c.jpg",
    "https://user:1234567/PW@host/x.jpg": "https://host/x.jpg",
    "s3://KEY:12/34PW@bucket/x.jpg": "s3://bucket/x.jpg",
    "//user:12/34PW@host/x.jpg": "//host/x.jpg",
    # numeric hosts, several @, percent-encoded characters
    "https://user@[::1]/x.jpg": "https://[::1]/x.jpg",
    "https://user:PW@[fe80::1]:8080/x.jpg": "https://[fe80::1]:8080/x.jpg",
    "https://user:PW@10.0.0.1:80/a@b.jpg": "https://10.0.0.1:80/a@b.jpg",
    "https://user@corp:PW@host/x.jpg": "https://host/x.jpg",
    "https://user%40corp:PW@host/x.jpg": "https://host/x.jpg",
    "https://%75ser:PW%2F%40@host/x.jpg": "https://host/x.jpg",
    "https://user:PW%2540host/x.jpg": "https://host/x.jpg",
    "git+ssh://user:PW@host/x.jpg": "git+ssh://host/x.jpg",
    "jdbc:mysql://user:PW@host/x": "jdbc:mysql://host/x",
    # addresses in the form of scp
    "user:PW@host:/x.jpg": "host:/x.jpg",
    "user:PW@host:~/x.jpg": "host:~/x.jpg",
    "user:PW@host:22/x.jpg": "host:22/x.jpg",
    "user:PW@[::1]:/x.jpg": "[::1]:/x.jpg",
    "user:P@W@host:/x.jpg": "host:/x.jpg",
    "user:12/34PW@host:/x.jpg": "host:/x.jpg",
    "user:PW@host::module/x.jpg": "host::module/x.jpg",
    # inside a query: another address, JSON, a form
    "https://proxy/?url=https%253A%252F%252Fu%253APW%2540host": "https://proxy/?url=https%253A%252F%252Fhost",
    "https://proxy/?url=https%3A%2F%2Fu%3APW%40host%3Fw%3D2": "https://proxy/?url=https%3A%2F%2Fhost%3Fw%3D2",
    "https://proxy/x%253Fw%253D2%2526token%253DPW": "https://proxy/x%253Fw%253D2",
    'https://proxy/?cfg={"password":"PW"}': 'https://proxy/?cfg={"password":""}',
    'https://proxy/?cfg={"a":{"api-key":"PW"},"b":1}': 'https://proxy/?cfg={"a":{"api-key":""},"b":1}',
    "https://proxy/?cfg={'token':'PW'}": "https://proxy/?cfg={'token':''}",
    'https://proxy/?cfg={"pin":1,"token":PW}': 'https://proxy/?cfg={"pin":1,"token":}',
    r'https://proxy/?cfg={"password":"P\"W;PW"}': 'https://proxy/?cfg={"password":""}',
    r'https://proxy/?cfg="{\"password\":\"PW\"}"': r'https://proxy/?cfg="{\"password\":\"\"}"',
    "https://proxy/?cfg=%7B%22password%22%3A%22PW%22%7D": "https://proxy/?cfg=%7B%22password%22%3A%22%22%7D",
    "https://proxy/?cfg=%7B%22password%22%3A+%22PW%22%7D": "https://proxy/?cfg=%7B%22password%22%3A+%22%22%7D",
    "https://proxy/?c=%257B%2522token%2522%253A%2522PW%2522%257D": "https://proxy/?c=%257B%2522token%2522%253A%2522%2522%257D",
    'https://proxy/?cfg={"url":"https://u:PW@host/x"}': 'https://proxy/?cfg={"url":"https://host/x"}',
    "https://proxy/?form=token%3DPW%26w%3D2": "https://proxy/?w%3D2",
    "https://proxy/?form[token]=PW&w=2": "https://proxy/?w=2",
    "https://proxy/?form%5Btoken%5D=PW&w=2": "https://proxy/?w=2",
    "https://host/x.jpg;token=PW": "https://host/x.jpg",
    "https://host/a;v=1;jsessionid=PW?w=2": "https://host/a;v=1",
    "https://host/#/back?access_token=PW": "https://host/#/back",
    "https://host/#state=1&access_token=PW": "https://host/#state=1",
    "https://host/%23access_token=PW": "https://host/",
    # signatures and tokens
    "https://host/x.jpg?X-Amz-Date=1&X-Amz-Credential=A&X-Amz-Signature=PW": "https://host/x.jpg",
    "s3://bucket/x.jpg?x-amz-signature=PW": "s3://bucket/x.jpg",
    "https://host/x.jpg?v=1&X-Amz-Security-Token=PW&w=2": "https://host/x.jpg?v=1&w=2",
    "https://host/x.jpg?X%2DAmz%2DSignature=PW&w=2": "https://host/x.jpg?w=2",
    "https://host/x.jpg?GoogleAccessId=A&Expires=1&Signature=PW": "https://host/x.jpg",
    "https://host/x.jpg?X-Goog-Algorithm=A&X-Goog-Signature=PW": "https://host/x.jpg",
    "https://host/x.jpg?sv=2020&se=2030&sr=b&sp=r&sig=PW": "https://host/x.jpg",
    "az://container/x.jpg?sv=2020&se=2030&sig=PW": "az://container/x.jpg",
    "https://host/x.jpg?AWSAccessKeyId=A&Expires=1&Signature=PW": "https://host/x.jpg",
    "https://host/x.jpg?Policy=A&Signature=PW&Key-Pair-Id=B": "https://host/x.jpg",
    "https://host/x.jpg?token=PW": "https://host/x.jpg",
    "https://host/x.jpg?access_token=PW#top": "https://host/x.jpg",
    "https://host/x.jpg#access_token=PW": "https://host/x.jpg",
    "https://host/x.jpg?api_key=PW&w=2": "https://host/x.jpg?w=2",
    "https://host/x.jpg?key=PWPWPWPWPWPWPWPWPW": "https://host/x.jpg",
    "https://host/x.jpg?password=P#W;PW?PW=PW": "https://host/x.jpg",
    "https://host/x.jpg?w=2&amp;sig=PW": "https://host/x.jpg?w=2&amp",
    "https://proxy/?url=https://host/x.jpg?sig=PW": "https://proxy/?url=https://host/x.jpg",
    "https://proxy/?url=https%3A%2F%2Fhost%2Fx%3FX-Amz-Signature%3DPW%26w%3D2": (
        "https://proxy/?url=https%3A%2F%2Fhost%2Fx%3Fw%3D2"
    ),
    "//host/x.jpg?sig=PW": "//host/x.jpg",
    "https://user:PW@host/x.jpg?w=2&sig=PW": "https://host/x.jpg?w=2",
}
ONLY_AS_ADDRESS = {
    "https://user:P W@host/z.jpg": "https://host/z.jpg",
    "https://host/x.jpg?sig=P W": "https://host/x.jpg",
    "x.jpg?X-Amz-Signature=PW": "x.jpg",
    'https://proxy/?cfg={"password": "PW"}': 'https://proxy/?cfg={"password": ""}',
}
"""In a text, white space ends an address, and an address has a scheme."""
KEPT = (
    "s3://bucket/a@b.jpg",
    "s3://bucket/a:b@c.jpg",
    "s3://bucket/x?y=1.jpg",
    "s3://bucket/x#1.jpg",
    "s3://bucket/a=b&c=d.jpg",
    "s3://bucket/a//x@y.jpg",
    "s3://bucket/tokens?tokenizer=bert",
    "s3://bucket/x?key=1.jpg",
    "s3://bucket/x?versionId=3",
    "wasbs://container@account.blob.core.windows.net/x.jpg",
    "abfss://container@account.dfs.core.windows.net/a@b.jpg",
    "https://host:8080/a@b.jpg",
    "https://host:8080/a/b@2x.png",
    "https://host:8080/a@b.jpg?w=2",
    "https://host:8080/x?mail=a@b.org",
    "https://host:8080/x?w=2&mail=a@b.org",
    "https://host/x?mail=a@b.org",
    "https://host/npm/@scope/x@1.2/y.png",
    'https://host/x?cfg={"a":1,"name":"b","key":"c"}',
    "https://host/x?cfg=%7B%22a%22%3A1%7D",
    "s3://bucket/12:34@56/x.jpg",
    "s3://bucket/auth=1/token=2/x.jpg",
    "git@host:/x.jpg",
    "12:30@home.jpg",
    "12:30@home/x.jpg",
    "a:b@c:d.jpg",
    "at 12:30 @home: x.jpg",
    "C:a@b/c.jpg",
    "C:\\a@b\\c:d.jpg",
    "file:///C:/a@b/c.jpg",
    "https://[::1]:80/a@b.jpg",
    "https://host/x?sv=2020",
    "file:///C:/a@b.jpg",
    "//data/a@b.jpg",
    "/data//a:b@c.jpg",
    "photo 12:30@home.jpg",
    "img.php?id=3.jpg",
    "grün/größe – 大きさ.png",
    "timm:hf-hub:timm/resnet18.a1_in1k@main",
)


@pytest.mark.parametrize("address", CUT | ONLY_AS_ADDRESS)
def test_credentials_are_cut(address: str) -> None:
    assert scrubbed(address) == (CUT | ONLY_AS_ADDRESS)[address]
    assert holds_credentials(address) and not holds_credentials(scrubbed(address))


@pytest.mark.parametrize("address", KEPT)
def test_text_without_credentials_is_unchanged(address: str) -> None:
    assert scrubbed(address) == scrubbed_text(address) == address
    assert not holds_credentials(address)


@pytest.mark.parametrize("address", CUT)
def test_an_address_within_a_text_is_cut_too(address: str) -> None:
    assert "PW" not in scrubbed_text(f"error for {address} here: {address}")
    assert scrubbed_text(f"mail bob@host, see https://host/a, 'b@c': {address}") == (
        f"mail bob@host, see https://host/a, 'b@c': {CUT[address]}"
    )


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("S3://Bucket/X.jpg", "s3://Bucket/X.jpg"),
        (" \nGs://b/x ", "gs://b/x "),
        ("FILE:///x", "file:///x"),
        ("HTTPS://host/x", "HTTPS://host/x"),
        (" x.jpg", " x.jpg"),
    ],
)
def test_schemes_of_readable_sources_become_lower_case(address: str, plain: str) -> None:
    assert plain_scheme(address) == plain
