"""The page at ``/docs`` (and at ``/`` where no studio is): every route with an example, as plain HTML.

It is made of the OpenAPI document and nothing else: no script, nothing from another machine, and one style
whose hash is in its Content-Security-Policy. In Chinese for who asks for it (Accept-Language).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import FastAPI, Request, Response

__all__ = ["add_page"]

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentcolor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { margin: 0 0 .5rem; } h2 { margin: 2.5rem 0 0; }
article { border-top: 1px solid var(--line); padding: .75rem 0; }
h3 { font: 600 1rem/1.4 ui-monospace, monospace; margin: 0; overflow-wrap: anywhere; }
h3 b { display: inline-block; min-width: 4.5rem; } p { margin: .25rem 0; }
pre { background: color-mix(in srgb, currentcolor 7%, transparent); border-radius: .4rem; margin: .4rem 0 0;
  overflow-wrap: anywhere; padding: .5rem .75rem; white-space: pre-wrap;
  font: 13px/1.5 ui-monospace, monospace; }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Frame-Options": "DENY", "Vary": "Accept-Language"}

_ABOUT = {
    "en": "Pictures on your own machine. A request is accepted at /api/jobs, followed by its events, and its "
    "pictures lie at /api/pictures. Programs written for AUTOMATIC1111 and for OpenAI's images work as they "
    "are. ID stands for the id that an answer names. Where the server asks for a token, add "
    "-H 'Authorization: Bearer TOKEN'.",
    "zh": "在自己的机器上生成图片。向 /api/jobs 提交请求，通过事件了解进度，图片在 /api/pictures。"
    "为 AUTOMATIC1111 或 OpenAI 图片接口编写的程序可直接使用。"
    "ID 表示回答中给出的 id。若服务器需要令牌，请加上 -H 'Authorization: Bearer TOKEN'。",
}
_COMPLETE = {
    "en": "Every field, answer and error, for programs:",
    "zh": "供程序读取的全部字段、回答与错误：",
}
_GROUPS = {
    "jobs": ("Jobs", "任务"),
    "pictures": ("Pictures", "图片"),
    "models": ("Models", "模型"),
    "status": ("The server itself", "服务器状态"),
    "a1111": ("AUTOMATIC1111's API", "AUTOMATIC1111 接口"),
    "openai": ("OpenAI's images API", "OpenAI 图片接口"),
}
#: What the routes do, in Chinese; English is in the document.
_CHINESE = {
    "POST /api/jobs": "提交请求。回答之后，任务已写入磁盘，重启也不会丢失。加上 Prefer: wait，一个请求就够："
    "任务结束时返回该任务；若只接受图片（Accept: image/*），则返回第一张图片。202 表示还需要更久。",
    "GET /api/jobs": "等待中、运行中与已结束的任务。",
    "GET /api/jobs/{id}": "一个任务的当前状态。",
    "POST /api/jobs/{id}/cancel": "请求停止任务；已结束的保持不变，不影响其他任务。",
    "POST /api/jobs/{id}/move": "把等待中的任务移到另一个之前，或移到最后。",
    "GET /api/jobs/{id}/preview": "运行中任务的最新预览。",
    "GET /api/jobs/{id}/events": "任务结束前的所有事件；中断后可用 Last-Event-ID 续接。",
    "GET /api/pictures": "符合全部条件的图片，最新的在前。",
    "GET /api/pictures/{id}": "一张图片的信息。",
    "DELETE /api/pictures/{id}": "永久删除图片及其记录。",
    "GET /api/pictures/{id}/file": "图片文件，内含其设置。",
    "GET /api/pictures/{id}/thumbnail": "缩略图，边长不超过 side 像素。",
    "POST /api/pictures/{id}/favourite": "收藏图片，或取消收藏。",
    "GET /api/models": "本机可在请求中使用的模型。",
    "GET /health": "进程是否有响应。",
    "GET /ready": "队列与图库是否就绪；自带工作进程时，是否有进程存活。",
    "GET /metrics": "请求、队列、图片与进程的指标（Prometheus 格式）。",
    "POST /sdapi/v1/txt2img": "由文字生成图片。",
    "POST /sdapi/v1/img2img": "在图片上重画，或只重画蒙版白色部分。",
    "POST /sdapi/v1/extra-single-image": "用模型或插值放大图片。",
    "POST /sdapi/v1/extra-batch-images": "依次放大多张图片。",
    "POST /sdapi/v1/png-info": "图片所记录的生成设置。",
    "GET /sdapi/v1/progress": "客户端正在等待的任务的进度。",
    "POST /sdapi/v1/interrupt": "停止此接口的客户端所等待的工作；其他任务继续。",
    "POST /sdapi/v1/skip": "同 interrupt。",
    "GET /sdapi/v1/options": "A1111 客户端所需的设置。",
    "POST /sdapi/v1/options": "选择之后使用的模型；其他设置接受但不起作用。",
    "POST /sdapi/v1/refresh-checkpoints": "无需操作：文件夹每隔几秒会自动查看。",
    "POST /sdapi/v1/refresh-loras": "同上。",
    "POST /sdapi/v1/refresh-vae": "同上。",
    "POST /sdapi/v1/refresh-embeddings": "同上。",
    "POST /sdapi/v1/unload-checkpoint": "无需操作：模型按需载入与卸载。",
    "POST /sdapi/v1/reload-checkpoint": "同上。",
    "GET /sdapi/v1/samplers": "采样器（A1111 的名称）。",
    "GET /sdapi/v1/schedulers": "噪声调度。",
    "GET /sdapi/v1/sd-models": "模型（A1111 的标题）；不透露本机文件夹。",
    "GET /sdapi/v1/loras": "提示词中可用的 LoRA。",
    "GET /sdapi/v1/sd-vae": "可替换模型自带的自编码器。",
    "GET /sdapi/v1/embeddings": "提示词中可用的 textual inversion。",
    "GET /sdapi/v1/upscalers": "放大方式：插值与本机的放大模型。",
    "GET /sdapi/v1/latent-upscale-modes": "两遍之间不用模型的放大方式。",
    "GET /sdapi/v1/prompt-styles": "本机模型的绘画风格，可在 styles 中使用。",
    "GET /sdapi/v1/scripts": "扩展；可读取 ControlNet 单元。",
    "GET /sdapi/v1/cmd-flags": "命令行；不对外透露。",
    "GET /sdapi/v1/realesrgan-models": "没有。",
    "GET /sdapi/v1/face-restorers": "没有。",
    "GET /sdapi/v1/hypernetworks": "没有。",
    "GET /sdapi/v1/script-info": "没有。",
    "GET /sdapi/v1/extensions": "没有。",
    "GET /sdapi/v1/memory": "不透露。",
    "GET /controlnet/version": "所支持的 ControlNet 扩展接口版本。",
    "GET /controlnet/model_list": "单元中可用的 ControlNet。",
    "GET /controlnet/module_list": "预处理器：此处没有，请直接发送处理好的图。",
    "GET /controlnet/control_types": "此处所有 ControlNet 为同一类。",
    "GET /controlnet/settings": "一个请求最多可有多少单元。",
    "POST /v1/images/generations": "由文字生成图片。",
    "POST /v1/images/edits": "在图片上重画；蒙版透明处将重新绘制。",
    "POST /v1/images/variations": "图片的其他版本。",
    "GET /v1/models": "本机的模型。",
    "GET /v1/models/{id}": "其中一个模型。",
}


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/docs``, and at ``/`` where ``app`` has nothing yet."""
    taken = any(getattr(route, "path", None) == "/" for route in app.routes)

    def page(request: Request) -> Response:
        language = "zh" if request.headers.get("accept-language", "")[:2].lower() == "zh" else "en"
        address = f"{request.url.scheme}://{request.headers.get('host', 'localhost')}"
        content = "".join(_page(app.openapi(), address, language))
        return Response(content, headers=_HEADERS, media_type="text/html; charset=utf-8")

    for path in ("/docs",) if taken else ("/", "/docs"):
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)


def _page(document: dict[str, Any], address: str, language: str) -> Iterator[str]:
    yield f'<!doctype html><html lang="{"zh-CN" if language == "zh" else "en"}"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>vitrail</title><style>{_STYLE}</style></head><body><main>"
    yield f"<h1>vitrail {escape(document['info']['version'])}</h1><p>{escape(_ABOUT[language])}</p>"
    yield f'<p>{escape(_COMPLETE[language])} <a href="/openapi.json">/openapi.json</a></p>'
    for tag, names in _GROUPS.items():
        found = [row for row in _operations(document) if tag in row[2].get("tags", ())]
        if not found:
            continue
        yield f'<section><h2 id="{tag}">{escape(names[language == "zh"])}</h2>'
        for method, path, operation in found:
            said = str(operation.get("description", "")).replace("``", "")
            if language == "zh":
                said = _CHINESE.get(f"{method} {path}", said)
            yield f"<article><h3><b>{method}</b> {escape(path)}</h3><p>{escape(said)}</p>"
            yield f"<pre><code>{escape(_example(document, address, method, path, operation))}</code></pre>"
            yield "</article>"
        yield "</section>"
    yield "</main></body></html>\n"


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def _example(
    document: dict[str, Any], address: str, method: str, path: str, operation: dict[str, Any]
) -> str:
    """Lines of curl that ask for ``operation``, each example of the document's with what it is for."""
    line = f"curl -s {address}{path.replace('{id}', 'ID')}"
    if path.endswith("/events"):
        line = line.replace("-s", "-sN", 1)
    if (suffix := _picture(operation)) is not None:
        line += f" -o {path.rpartition('/')[2]}{suffix}"
    if method not in ("GET", "POST"):
        line += f" -X {method}"
    content = operation.get("requestBody", {}).get("content", {})
    if "multipart/form-data" in content:
        fields = _fields(document, content["multipart/form-data"]["schema"])
        files = [name for name, field in fields.items() if field.get("format") == "binary"]
        words = " -F 'prompt=a cat'" if "prompt" in fields else ""
        return line + words + "".join(f" -F {name}=@{name}.png" for name in files if "[" not in name)
    if "application/json" in content:
        line += " -H 'Content-Type: application/json' -d "
        given = content["application/json"].get("examples", {}).values()
        if len(given) > 1:
            return "\n".join(f"# {one['summary']}\n{line}{_quoted(one['value'])}" for one in given)
        return line + _quoted(_value(document, content["application/json"]))
    if method in ("POST", "DELETE"):
        line += " -H 'Content-Type: application/json'" + (" -d '{}'" if method == "POST" else "")
    return line


def _quoted(value: Any) -> str:
    body = json.dumps(value, ensure_ascii=False).replace("'", "'\\''")
    return f"'{body}'"


def _picture(operation: dict[str, Any]) -> str | None:
    """The suffix of the picture that is answered, and nothing else, which a terminal cannot show."""
    kinds = list(operation.get("responses", {}).get("200", {}).get("content", {}))
    if not kinds or not all(kind.startswith("image/") for kind in kinds):
        return None
    return f".{kinds[0].removeprefix('image/')}"


def _value(document: dict[str, Any], media: dict[str, Any]) -> Any:
    """The body of an example: the document's own, else the fields that have one or must be there."""
    for example in media.get("examples", {}).values():
        return example["value"]
    schema = media.get("schema", {})
    fields = _fields(document, schema)
    required = _resolved(document, schema).get("required", ())
    found = {}
    for name, field in fields.items():
        if field.get("examples"):
            found[name] = field["examples"][0]
        elif name in required:
            found[name] = _stub(name, field)
    return found


def _stub(name: str, field: dict[str, Any]) -> Any:
    kind = field.get("type")
    plain: dict[str, Any] = {"boolean": True, "integer": 1, "number": 1.0, "array": [], "object": {}}
    return field["enum"][0] if field.get("enum") else plain.get(str(kind), name.upper())


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    fields: dict[str, dict[str, Any]] = _resolved(document, schema).get("properties", {})
    return fields


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found: dict[str, Any] = document["components"]["schemas"].get(name, schema) if name else schema
    return found
